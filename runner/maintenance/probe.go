package maintenance

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// probe asks the site what its clients get.
type probe struct {
	url    string
	shown  string // the same without a password
	client *http.Client
}

// answer is what the site said.
type answer struct {
	status     int
	retryAfter bool
}

// page reports whether the answer is that of a site in maintenance.
func (a answer) page() bool { return a.status == http.StatusServiceUnavailable }

// probeAttempt bounds one request, so that a server which accepts and says
// nothing leaves time for another try.
const probeAttempt = 5 * time.Second

// newProbe returns a probe of rawURL, which is valid. It uses no proxy, opens a
// connection per request and follows no redirect: the redirect is the answer.
func newProbe(rawURL string) *probe {
	transport := &http.Transport{DisableKeepAlives: true}
	shown := rawURL
	if u, err := url.Parse(rawURL); err == nil {
		shown = u.Redacted()
		if loopback(u.Hostname()) {
			// The certificate there is for the public name, and nobody is in between.
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec
		}
	}
	return &probe{url: rawURL, shown: shown, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ask makes one request.
func (p *probe) ask(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, probeAttempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return answer{}, fmt.Errorf("probe the site: %w", err)
	}
	req.Header.Set("User-Agent", "wrktalk-agent")
	resp, err := p.client.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("probe the site: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // the status is what counts
	return answer{status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After") != ""}, nil
}

// await asks until the page is on, or off, or ctx ends.
func (p *probe) await(ctx context.Context, on bool) error {
	pause := 50 * time.Millisecond
	var last answer
	var lastErr error
	for {
		a, err := p.ask(ctx)
		if err == nil && a.page() == on {
			return nil
		}
		if ctx.Err() == nil || last.status == 0 && lastErr == nil {
			last, lastErr = a, err // rather than that time was over during the last one
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
			continue
		}
		switch {
		case lastErr != nil:
			return fmt.Errorf("%w: check maintenance.probe_url and the web server", lastErr)
		case on:
			return fmt.Errorf("probe %s: it answers %d instead of 503: check that the web server loads the maintenance snippet and serves this address", p.shown, last.status)
		default:
			return fmt.Errorf("probe %s: it answers 503 although the page was switched off: check that the application is healthy", p.shown)
		}
	}
}
