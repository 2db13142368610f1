package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// healthTimeout bounds how long the agent may take to say how it is.
const healthTimeout = 5 * time.Second

// Health returns a sentence about the agent of this configuration on this host when it
// runs and none of its components hangs or is in a crash loop: what /healthz says. Its
// error is a sentence, too. Where the page cannot be had, because there is none or another agent has the
// address, it counts that an agent runs on the staging directory.
func (c *Client) Health(ctx context.Context) (string, error) {
	var held *staging.HeldError
	running := errors.As(staging.AgentHolds(c.StagingDir), &held)
	if !running {
		return "", fmt.Errorf("no agent runs on %s", c.StagingDir)
	}
	page, err := c.askHealth(ctx)
	switch {
	case err != nil:
		return "the agent runs; how it is, is not known: " + err.Error(), nil
	case page.OK && page.Stopping:
		return "the agent is stopping", nil
	case page.OK:
		return "the agent is healthy", nil
	}
	var bad []string
	for _, s := range page.Components {
		switch {
		case s.CrashLoop:
			bad = append(bad, s.String()+" (crash loop)")
		case s.Hanging:
			bad = append(bad, s.String()+" (no sign of life)")
		}
	}
	return "", fmt.Errorf("the agent is not healthy: %s", strings.Join(bad, "; "))
}

// healthPage is what is read of the JSON form of /healthz.
type healthPage struct {
	OK         bool                `json:"ok"`
	Stopping   bool                `json:"stopping"`
	Staging    string              `json:"staging"`
	Components []supervisor.Status `json:"components"`
}

// askHealth asks for the page of the agent of this configuration, and no other one's.
func (c *Client) askHealth(ctx context.Context) (*healthPage, error) {
	if c.Listen == "" {
		return nil, errors.New("http.listen is off")
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+"/healthz", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := loopbackClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	page := &healthPage{}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(page); err != nil || page.Staging != c.StagingDir {
		return nil, fmt.Errorf("what answers on %s is another program", c.Listen)
	}
	return page, nil
}
