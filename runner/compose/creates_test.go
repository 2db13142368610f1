package compose

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/client"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// TestInterruptedWhileCreating: a container that the engine creates although the
// deployment was interrupted meanwhile does not stay.
func TestInterruptedWhileCreating(t *testing.T) {
	host, err := client.ParseHostURL(client.DefaultDockerHost)
	if env := os.Getenv("DOCKER_HOST"); env != "" {
		host, err = client.ParseHostURL(env)
	}
	if err != nil || host.Scheme != "unix" {
		t.Skipf("the engine is not at a unix socket: %v, %v", host, err)
	}
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)

	// In front of the engine, something that holds its answer back.
	held, release := make(chan struct{}), make(chan struct{})
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine"
		},
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", host.Host) }},
		ModifyResponse: func(r *http.Response) error {
			if strings.HasSuffix(r.Request.URL.Path, "/containers/create") && strings.Contains(r.Request.URL.RawQuery, "extra") {
				close(held)
				<-release
			}
			return nil
		},
	}
	dir, err := os.MkdirTemp("", "line") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: proxy}
	go server.Serve(listener)
	defer server.Close()
	t.Setenv("DOCKER_HOST", "unix://"+listener.Addr().String())

	two := b.release("2.0", map[string]string{"compose.yaml": b.web("1.0", "  extra:\n    image: "+b.image+"\n")}, "")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		<-held
		cancel(errors.New("the deployment was interrupted"))
	}()
	b.watchers = append(b.watchers, func(e task.Event) bool {
		if e.Phase != task.PhaseRestoring {
			return false
		}
		if b.containers() != 2 {
			t.Error("the engine had not created the container")
		}
		close(release)
		return true
	})
	res := b.runContext(ctx, b.job(two, kept(one)))
	failsWith(t, res, "interrupted")
	if !res.Restored || b.containers() != 1 || b.ask("web", "/") != "1.0" {
		t.Errorf("%d containers: %+v", b.containers(), res)
	}
}
