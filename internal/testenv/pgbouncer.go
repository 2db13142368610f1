package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// NewPgBouncer starts PgBouncer in front of db's server for the length of a test and
// returns a connection string that leads through it. mode is its pool_mode: session,
// transaction or statement. Without PgBouncer the test is skipped, in CI it fails.
func NewPgBouncer(t testing.TB, db *DB, mode string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		Missing(t, "PgBouncer", err)
	}
	home, err := newOwnedDir("wrktalk-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(home.remove)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(home.path, "pgbouncer.ini")
	err = home.write(config, fmt.Appendf(nil, `[databases]
* = host=%s port=%d user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
`, db.Server.SocketDir, db.Server.Port, postgresUser, port, mode))
	if err != nil {
		t.Fatal(err)
	}
	logFile, err := os.Create(filepath.Join(home.path, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	cmd := exec.Command(program, config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = home.path, logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: home.owner, Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread's end would kill PgBouncer
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	for {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			conn.Close()
			return db.Server.ConnString(db.Name, "127.0.0.1", port)
		}
		select {
		case err := <-exited:
			exited <- err
			said, _ := os.ReadFile(logFile.Name())
			t.Fatalf("PgBouncer ended at once (%v) and said: %s", err, said)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
