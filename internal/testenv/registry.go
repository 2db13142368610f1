package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// RegistryOptions say how a registry is to behave. The zero value takes everybody.
type RegistryOptions struct {
	User, Password string // the one who may log in, if not empty
}

const registryConfig = `version: 0.1
log: {accesslog: {disabled: true}, level: warn}
storage: {filesystem: {rootdirectory: %[1]s/images}}
http: {addr: %[2]q}
`

// NewRegistry starts a registry for container images for the length of a test and returns
// its address, which engines on this machine take without TLS. Without Debian's
// docker-registry the test is skipped, in CI it fails.
func NewRegistry(t testing.TB, opts RegistryOptions) (address string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "wrktalk-registry-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if address, err = freeAddress(); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(registryConfig, dir, address)
	if opts.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(opts.Password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		passwords := filepath.Join(dir, "passwords")
		if err := os.WriteFile(passwords, fmt.Appendf(nil, "%s:%s\n", opts.User, hash), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords)
	}
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := startWebServer(dir, "docker-registry", "serve", path)
	if errors.Is(err, errNoWebServer) {
		Missing(t, "docker-registry", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.await("start the registry", dialable("tcp", address)); err != nil {
		t.Fatal(err)
	}
	return address
}
