package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// project is the Compose project of the demo.
const project = "wrktalk-demo"

// compose returns the steps of the demo on Docker Compose.
func (d *demo) compose() []func(context.Context) error {
	d.deploymentType = "docker"
	c := &composeDemo{demo: d}
	return []func(context.Context) error{
		d.prepare, c.buildImages, c.settings, d.database, d.start, c.first, c.second, c.show, d.linger,
	}
}

type composeDemo struct {
	*demo
	port int
}

func image(version string) string { return project + "/web:" + version }

// buildImages builds the application's images, which hold one static program each.
func (c *composeDemo) buildImages(ctx context.Context) error {
	title("Building the sample application, versions 1.0.0 and 1.1.0")
	if err := testenv.CheckDocker(ctx); err != nil {
		return err
	}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		if err := testenv.BuildAppImage(ctx, image(v), v, time.Second); err != nil {
			return err
		}
		c.undo = append(c.undo, func() error { return testenv.RemoveImage(context.Background(), image(v)) })
	}
	c.undo = append(c.undo, func() error { return testenv.RemoveComposeProject(context.Background(), project) })
	return nil
}

// settings says where the release goes.
func (c *composeDemo) settings(context.Context) (err error) {
	if c.port, err = freePort(); err != nil {
		return err
	}
	c.env = append(c.env,
		"WRKTALK_AGENT_COMPOSE_PROJECT_NAME="+project,
		"WRKTALK_AGENT_COMPOSE_WORKING_DIR="+filepath.Join(c.dir, "compose"))
	c.hints = append(c.hints, fmt.Sprintf("The application: http://127.0.0.1:%d/", c.port))
	return nil
}

func (c *composeDemo) first(ctx context.Context) error {
	title("The first release")
	return c.deploy(ctx, "1.0.0", "Hello")
}

func (c *composeDemo) second(ctx context.Context) error {
	title("The next release")
	return c.deploy(ctx, "1.1.0", "Hello again")
}

// deploy pushes a release, deploys it and asks the application who it is.
func (c *composeDemo) deploy(ctx context.Context, version, greeting string) error {
	env := fmt.Sprintf("IMAGE=%s\nPORT=%d\nGREETING=%s\nDB_PASSWORD=never-leaves-the-row\n", image(version), c.port, greeting)
	if err := c.push(ctx, "compose", version, "env", version+".env", env); err != nil {
		return err
	}
	if err := c.agent(ctx, "deploy", version, "--wait"); err != nil {
		return c.explain(err)
	}
	body, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/", c.port))
	if err != nil {
		return err
	}
	fmt.Printf("$ curl http://127.0.0.1:%d/\n%s\n", c.port, body)
	return nil
}

// show prints what a person wants to see in the end.
func (c *composeDemo) show(ctx context.Context) error {
	if err := c.rows(ctx); err != nil {
		return err
	}
	title("The container, as the standard tools see it")
	ps, err := testenv.RunDocker(ctx, "ps", "--filter", "label=com.docker.compose.project="+project,
		"--format", "table {{.Names}}\t{{.Image}}\t{{.Status}}\t{{.Ports}}")
	if err != nil {
		return err
	}
	fmt.Println(ps)
	if err := c.mails(ctx, 4); err != nil {
		return err
	}
	title("The staging directory")
	return c.staging(ctx)
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the application: %w", err)
	}
	defer res.Body.Close()
	body := make([]byte, 256)
	n, _ := res.Body.Read(body)
	return strings.TrimSpace(string(body[:n])), nil
}
