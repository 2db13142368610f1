package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// NginxOptions says what nginx serves.
type NginxOptions struct {
	Upstream string // host:port of the application
	FlagFile string // absolute; by default "flag/maintenance-mode" in the server's own directory
}

// Nginx is a real nginx on the loopback address, with the shipped maintenance
// snippet in its only server block.
type Nginx struct {
	URL           string // of the site, without a path
	FlagFile      string
	ReloadCommand string // reloads this nginx and no other
	*webServer
}

const nginxConfig = `
%s
worker_processes 2;
daemon off;
pid %[2]s/nginx.pid;
error_log %[2]s/error.log;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	# What the snippet must switch off, or the flag would be seen late.
	open_file_cache max=100;
	open_file_cache_errors on;
	server {
		listen %[3]s;
		include %[2]s/wrktalk-maintenance.conf;
		location / { proxy_pass http://%[4]s; }
	}
}
`

// startNginx starts nginx. The caller closes it.
func startNginx(opts NginxOptions) (_ *Nginx, err error) {
	dir, err := webDir("wrktalk-nginx-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if opts.FlagFile == "" {
		opts.FlagFile = filepath.Join(dir, "flag", "maintenance-mode")
		if err := os.Mkdir(filepath.Dir(opts.FlagFile), 0o755); err != nil {
			return nil, err
		}
	}
	snippet, err := shipped("nginx/wrktalk-maintenance.conf",
		"if (-f /tmp/maintenance-mode)", "if (-f "+opts.FlagFile+")",
		"alias /usr/share/wrktalk-agent/nginx/maintenance.html;", "alias "+dir+"/maintenance.html;")
	if err != nil {
		return nil, err
	}
	page, err := shipped("nginx/maintenance.html")
	if err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user www-data;" // as Debian has it: the flag must be visible to others than root
	}
	for name, text := range map[string]string{
		"wrktalk-maintenance.conf": snippet,
		"maintenance.html":         page,
		"nginx.conf":               fmt.Sprintf(nginxConfig, user, dir, address, opts.Upstream),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	args := []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log")}
	s, err := startWebServer(dir, "nginx", args...)
	if err != nil {
		return nil, err
	}
	if err := s.await("start nginx", dialable("tcp", address)); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return &Nginx{
		URL:      "http://" + address,
		FlagFile: opts.FlagFile,
		ReloadCommand: fmt.Sprintf("nginx -p %s -c %s -e %s -s reload",
			dir, filepath.Join(dir, "nginx.conf"), filepath.Join(dir, "error.log")),
		webServer: s,
	}, nil
}

// NewNginx starts nginx for one test. Without nginx the test is skipped, in CI
// it fails.
func NewNginx(t testing.TB, opts NginxOptions) *Nginx {
	t.Helper()
	n, err := startNginx(opts)
	if err != nil {
		webFailed(t, err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Stop ends nginx at once; its files stay until Close.
func (n *Nginx) Stop() error { return n.stop() }

// Close ends nginx and removes its files.
func (n *Nginx) Close() error { return n.close() }
