package config

import "time"

// Notify is the [notify] section.
type Notify struct {
	MaxAge  time.Duration
	TLS     string // auto, starttls, implicit or none
	CAFile  string // absolute path or ""
	Helo    string // "" is the host's name
	Timeout time.Duration

	// The login by OAuth; all empty for none.
	OAuthTokenURL, OAuthClientID string
	OAuthClientSecret            Secret
	OAuthScope                   string
}

var notifyKeys = []key{
	{
		"notify.max_age", "72h", "how old an undeliverable mail gets before it is given up",
		duration(func(c *Config) *time.Duration { return &c.Notify.MaxAge }, 1),
	},
	{
		"notify.tls", "auto", "auto: implicit TLS on port 465, STARTTLS elsewhere, which only a server on the loopback address may lack; none: unencrypted",
		choice(func(c *Config) *string { return &c.Notify.TLS }, "auto", "starttls", "implicit", "none"),
	},
	{
		"notify.ca_file", "", "file of CA certificates to trust beside the system's",
		pathOr(func(c *Config) *string { return &c.Notify.CAFile }, ""),
	},
	{
		"notify.helo", "", "name to greet the mail server with; empty: the host's",
		text(func(c *Config) *string { return &c.Notify.Helo }, isHelo),
	},
	{
		"notify.timeout", "30s", "how long one exchange with the mail server may take; once it has the whole mail, it may take 10m to answer",
		duration(func(c *Config) *time.Duration { return &c.Notify.Timeout }, 1),
	},
	{
		"notify.oauth_token_url", "", "where to get a token to log in with instead of smtp_password (XOAUTH2); for Exchange Online https://login.microsoftonline.com/TENANT/oauth2/v2.0/token; empty: no token",
		text(func(c *Config) *string { return &c.Notify.OAuthTokenURL }, isProbeURL),
	},
	{
		"notify.oauth_client_id", "", "the agent's application id there",
		text(func(c *Config) *string { return &c.Notify.OAuthClientID }, nil),
	},
	{
		"notify.oauth_client_secret", "", "the application's secret",
		secret(func(c *Config) *Secret { return &c.Notify.OAuthClientSecret }, nil),
	},
	{
		"notify.oauth_scope", "https://outlook.office365.com/.default", "what the token is for",
		text(func(c *Config) *string { return &c.Notify.OAuthScope }, nil),
	},
}
