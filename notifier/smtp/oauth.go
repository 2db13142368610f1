package smtp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/notifier"
)

// OAuth has the agent log in to the mail server with a token (XOAUTH2) that it gets
// for its own credentials (RFC 6749, 4.4), as Exchange Online wants it. The token is
// kept until it expires, or the mail server refuses it. It is safe for concurrent use.
type OAuth struct {
	TokenURL string // https, or http on the loopback address
	ClientID string
	Secret   string
	Scope    string // "" for none

	mu      sync.Mutex
	token   string
	expires time.Time
}

const (
	maxTokenReply = 1 << 20 // bytes
	// tokenMargin is how long before its end a token is replaced: the login takes a
	// moment, and clocks differ.
	tokenMargin = time.Minute
)

// get returns a token that is still valid.
func (o *OAuth) get(ctx context.Context, t Transport) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.token != "" && time.Now().Add(tokenMargin).Before(o.expires) {
		return o.token, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	token, life, err := o.request(ctx, t)
	if err != nil {
		return "", err
	}
	o.token, o.expires = token, time.Now().Add(life)
	return token, nil
}

// drop forgets a token that the mail server refused.
func (o *OAuth) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.token = ""
}

// request asks for a new token. Every error can be mended by somebody.
func (o *OAuth) request(ctx context.Context, t Transport) (token string, life time.Duration, err error) {
	fail := func(reason, advice string, err error) (string, time.Duration, error) {
		return "", 0, &sendError{
			action: "get a token from " + o.host(), reason: strings.ReplaceAll(reason, o.Secret, "***"), advice: advice, retry: true, err: err,
		}
	}
	client, err := o.client(t)
	if err != nil {
		return fail(plainError(err), "set notify.oauth_token_url to an https address", err)
	}
	defer client.CloseIdleConnections()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {o.ClientID}, "client_secret": {o.Secret}}
	if o.Scope != "" {
		form.Set("scope", o.Scope)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return fail("it is no address", "set notify.oauth_token_url", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	res, err := client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the address
		}
		return fail(plainError(err), "check notify.oauth_token_url, and that this host reaches it", err)
	}
	defer res.Body.Close()
	var reply struct {
		Token       string  `json:"access_token"`
		Life        float64 `json:"expires_in"` // seconds
		Error       string  `json:"error"`
		Description string  `json:"error_description"`
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxTokenReply))
	if err != nil {
		return fail(plainError(err), "", err)
	}
	decodeErr := json.Unmarshal(body, &reply)
	switch {
	case res.StatusCode != http.StatusOK && decodeErr == nil && reply.Error != "":
		return fail(fmt.Sprintf("the server answered %d %s", res.StatusCode, notifier.Label(reply.Error+": "+reply.Description, "")),
			"check notify.oauth_client_id, notify.oauth_client_secret and notify.oauth_scope", nil)
	case res.StatusCode != http.StatusOK:
		return fail("the server answered "+res.Status, "check notify.oauth_token_url", nil)
	case decodeErr != nil || reply.Token == "" || strings.ContainsFunc(reply.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fail("the answer holds no token", "check notify.oauth_token_url", nil)
	}
	return reply.Token, time.Duration(reply.Life * float64(time.Second)), nil
}

func (o *OAuth) host() string {
	u, err := url.Parse(o.TokenURL)
	if err != nil || u.Host == "" {
		return "the token server"
	}
	return u.Host
}

// client returns what talks to the token's server, in the clear on this host alone.
func (o *OAuth) client(t Transport) (*http.Client, error) {
	u, err := url.Parse(o.TokenURL)
	if err != nil {
		return nil, errors.New("it is no address")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, errors.New("the secret is never sent in the clear to another host")
	}
	conf, err := t.tlsConfig(u.Hostname())
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, DisableKeepAlives: true,
			DialContext: (&net.Dialer{Timeout: t.timeout()}).DialContext,
		},
		// A redirection would take the secret elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}
