package testenv

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Load is a number of clients that ask a site without pause. Half of them keep
// their connection, half open a new one for each request.
type Load struct {
	url    string
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	clients []*loadClient
}

type loadClient struct {
	started uint64   // requests begun
	done    uint64   // requests answered
	seen    []string // answers in order, without repeats
}

// startLoad starts so many clients. The caller stops them.
func startLoad(url string, clients int) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{url: url, cancel: cancel}
	l.changed = sync.NewCond(&l.mu)
	for i := range clients {
		c := &loadClient{}
		l.clients = append(l.clients, c)
		l.wait.Go(func() { l.run(ctx, c, i%2 == 0) })
	}
	return l
}

// NewLoad starts clients that stop with the test at the latest.
func NewLoad(t testing.TB, url string, clients int) *Load {
	t.Helper()
	l := startLoad(url, clients)
	t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) run(ctx context.Context, c *loadClient, keep bool) {
	transport := &http.Transport{DisableKeepAlives: !keep}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}
	for ctx.Err() == nil {
		l.mu.Lock()
		c.started++
		l.mu.Unlock()
		answer := ask(ctx, client, l.url)
		l.mu.Lock()
		if ctx.Err() == nil && (len(c.seen) == 0 || c.seen[len(c.seen)-1] != answer) {
			c.seen = append(c.seen, answer)
		}
		c.done++
		l.changed.Broadcast()
		l.mu.Unlock()
	}
}

// ask returns what one request was answered with: the first line of a 200, the
// status of anything else, or the error.
func ask(ctx context.Context, client *http.Client, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "":
		return "503 without Retry-After"
	case resp.StatusCode != http.StatusOK:
		return fmt.Sprint(resp.StatusCode)
	}
	line, _, _ := strings.Cut(string(body), "\n")
	return line
}

// Round returns when every client has had the answer to a request that it began
// after the call.
func (l *Load) Round() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		for begun := c.started; c.done <= begun; {
			l.changed.Wait()
		}
	}
}

// Stop ends the clients and returns what each one saw, in order and without
// repeats.
func (l *Load) Stop() [][]string {
	l.cancel()
	l.wait.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([][]string, 0, len(l.clients))
	for _, c := range l.clients {
		all = append(all, slices.Clone(c.seen))
	}
	return all
}

// InOrder returns an error unless each client saw exactly the given answers, in
// this order.
func InOrder(seen [][]string, want ...string) error {
	for i, s := range seen {
		if !slices.Equal(s, want) {
			return fmt.Errorf("client %d saw %q, want %q", i, s, want)
		}
	}
	return nil
}
