package testenv

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrNoPostgres is returned where PostgreSQL's server programs are not
// installed.
var ErrNoPostgres = errors.New("find PostgreSQL's server programs: none below /usr/lib/postgresql and no postgres in PATH")

// PostgresOptions says how StartPostgres runs its server. The zero value is a
// fast throw-away server: no password, no TLS, nothing survives a power loss.
type PostgresOptions struct {
	Password string   // superuser's; not empty means scram-sha-256 over TCP
	TLS      bool     // TCP connections must use TLS, with a certificate from CAFile
	Durable  bool     // keep fsync, full_page_writes and synchronous_commit on
	Settings []string // further "name=value" settings of the server
	HBA      []string // lines of pg_hba.conf that come before the server's own
	Standby  bool     // a hot standby that waits for its primary for ever: it takes no writes
}

// Postgres is a running PostgreSQL server that belongs to this process: it is
// killed when the process dies. It listens on a loopback port and on a Unix
// socket. Its superuser is called "postgres".
type Postgres struct {
	Port      int
	SocketDir string
	CAFile    string // certificate that signed the server's, "" without TLS

	opts     PostgresOptions
	bin      string
	home     *ownedDir
	server   *os.Process
	exited   chan struct{} // closed when the server's process was reaped
	stop     sync.Once
	sessions sessions
}

// postgresUser is the superuser of every server that StartPostgres starts.
const postgresUser = "postgres"

const startAttempts = 3

// StartPostgres initialises a cluster in a temporary directory and starts a
// server on it. The caller calls Stop.
func StartPostgres(opts PostgresOptions) (*Postgres, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	home, err := newOwnedDir("wrktalk-postgres-")
	if err != nil {
		return nil, err
	}
	p := &Postgres{opts: opts, bin: bin, home: home, SocketDir: home.path}
	if err := p.init(); err != nil {
		home.remove()
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if err = p.start(); err == nil {
			return p, nil
		}
		// Somebody may have taken the port that was free a moment ago.
		if attempt == startAttempts {
			home.remove()
			return nil, err
		}
	}
}

// Stop ends the server, waits for it and removes its directory.
func (p *Postgres) Stop() {
	p.stop.Do(func() {
		p.halt()
		p.home.remove()
	})
}

// Restart stops the server and starts it again on the same port and data, as
// a maintenance of the database would.
func (p *Postgres) Restart() error {
	p.halt()
	return p.start()
}

// Halt stops the server and keeps its data; Restart brings it back.
func (p *Postgres) Halt() { p.halt() }

func (p *Postgres) halt() {
	p.sessions.closeAll()
	// SIGINT is the fast shutdown, SIGQUIT the immediate one.
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		_ = p.server.Signal(sig)
		select {
		case <-p.exited:
			return
		case <-time.After(time.Minute):
		}
	}
	<-p.exited
}

// URL returns a connection string for database as the superuser over TCP. It
// holds the password.
func (p *Postgres) URL(database string) string {
	return p.ConnString(database, "127.0.0.1", p.Port)
}

// ConnString returns a connection string for database as the superuser, by way
// of host and port: of the server itself, or of a Proxy in front of it.
func (p *Postgres) ConnString(database, host string, port int) string {
	u := url.URL{
		Scheme: "postgres",
		User:   url.User(postgresUser),
		Host:   net.JoinHostPort(host, strconv.Itoa(port)),
		Path:   "/" + database,
	}
	if p.opts.Password != "" {
		u.User = url.UserPassword(postgresUser, p.opts.Password)
	}
	query := url.Values{"sslmode": {"disable"}}
	if p.opts.TLS {
		query = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {p.CAFile}}
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// init creates the cluster and says who may connect to it how.
func (p *Postgres) init() error {
	if err := p.createCluster(); err != nil {
		return err
	}
	if p.opts.Standby {
		if err := p.home.write(filepath.Join(p.data(), "standby.signal"), nil); err != nil {
			return err
		}
	}
	kind, auth := "host", "trust"
	if p.opts.Password != "" {
		auth = "scram-sha-256"
	}
	if p.opts.TLS {
		kind = "hostssl"
		if err := p.installCertificate(); err != nil {
			return err
		}
	}
	hba := fmt.Sprintf("local all all trust\n%s all all 127.0.0.1/32 %s\n%s all all ::1/128 %s\n", kind, auth, kind, auth)
	hba = strings.Join(append(slices.Clone(p.opts.HBA), hba), "\n")
	return p.home.write(filepath.Join(p.data(), "pg_hba.conf"), []byte(hba))
}

// installCertificate gives the server a certificate for localhost and
// 127.0.0.1, and the tests the authority that signed it.
func (p *Postgres) installCertificate() error {
	cert, authority, err := issueCertificate([]string{"localhost", "127.0.0.1"})
	if err != nil {
		return fmt.Errorf("make the certificate of PostgreSQL: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode the key of PostgreSQL: %w", err)
	}
	p.CAFile = filepath.Join(p.home.path, "ca.crt")
	return errors.Join(
		p.home.write(p.CAFile, authority),
		p.home.write(filepath.Join(p.data(), "server.crt"),
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		p.home.write(filepath.Join(p.data(), "server.key"),
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	)
}

func (p *Postgres) data() string { return filepath.Join(p.home.path, "data") }

func (p *Postgres) settings() []string {
	s := []string{
		"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(p.Port),
		"unix_socket_directories=" + p.SocketDir, "unix_socket_permissions=0700",
		"max_connections=60", "shared_buffers=32MB", "jit=off", "logging_collector=off",
		"log_destination=stderr", "lc_messages=C",
	}
	if !p.opts.Durable {
		s = append(s, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	}
	if p.opts.TLS {
		s = append(s, "ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key")
	}
	if p.opts.Standby { // no fewer than the cluster was made for
		s = append(s, "max_connections=100")
	}
	return append(s, p.opts.Settings...)
}

// start starts the server and waits until it accepts connections.
func (p *Postgres) start() error {
	if p.Port == 0 || (p.server == nil && !portFree(p.Port)) {
		port, err := freePort()
		if err != nil {
			return err
		}
		p.Port = port
	}
	args := []string{"-D", p.data()}
	for _, s := range p.settings() {
		args = append(args, "-c", s)
	}
	log, logWriter, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	cmd := exec.Command(filepath.Join(p.bin, "postgres"), args...)
	cmd.Dir = p.home.path
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.Stderr = logWriter
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.home.owner, Pdeathsig: syscall.SIGQUIT}

	started := make(chan error)
	p.exited = make(chan struct{})
	go func() {
		// The parent-death signal fires when the forking thread ends, so this
		// one stays until the server is gone.
		runtime.LockOSThread()
		err := cmd.Start()
		logWriter.Close()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		log.Close()
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	p.server = cmd.Process
	return p.awaitReady(log)
}

// awaitReady reads the server's log until it says that it is ready, and goes
// on draining it, so that the server never blocks on its own log.
func (p *Postgres) awaitReady(log io.ReadCloser) error {
	ready := make(chan bool, 1)
	var said []string
	go func() {
		defer log.Close()
		lines := bufio.NewScanner(log)
		lines.Buffer(nil, 1<<20)
		waiting := true
		for lines.Scan() {
			if !waiting {
				continue
			}
			said = append(said, lines.Text())
			if strings.Contains(lines.Text(), "database system is ready to accept") { // connections, or a standby read-only ones
				waiting = false
				ready <- true
			}
		}
		if waiting {
			ready <- false
		}
		_, _ = io.Copy(io.Discard, log)
	}()
	select {
	case ok := <-ready:
		if ok {
			return nil
		}
		<-p.exited
		return fmt.Errorf("start PostgreSQL: it ended at once and said: %s", strings.Join(said, "; "))
	case <-time.After(5 * time.Minute):
		p.halt()
		return errors.New("start PostgreSQL: not ready within five minutes")
	}
}

// postgresBin returns the directory of the newest installed server.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	for _, path := range found {
		dir := filepath.Dir(path)
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
			return dir, nil
		}
	}
	return "", ErrNoPostgres
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// serverUser returns whom the server runs as: nil for ourselves, and some
// unprivileged user where we are root, as whom PostgreSQL refuses to run.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read the ids of user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("find a user for PostgreSQL: it refuses to run as root, and there is neither postgres nor nobody")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
