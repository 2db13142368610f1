package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("TESTENV_DIE_WITH_SERVER") != "" {
		dieWithServer()
	}
	Main(m)
}

// dieWithServer is the process that TestServerDiesWithItsOwner starts: it
// starts a server, says where, and waits to be killed.
func dieWithServer() {
	p, err := StartPostgres(PostgresOptions{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Port, p.home.path)
	select {}
}

func TestServerDiesWithItsOwner(t *testing.T) {
	if _, err := postgresBin(); err != nil {
		Missing(t, "PostgreSQL", err)
	}
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "TESTENV_DIE_WITH_SERVER=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var port int
	var home string
	if _, err := fmt.Fscan(out, &port, &home); err != nil {
		t.Errorf("read where the server is: %v", err)
	}
	server, err := postmaster(home)
	if err != nil {
		t.Error(err)
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	if err != nil {
		return
	}
	defer unix.Close(server)
	// A pidfd becomes readable when its process has ended.
	if err := AwaitReadable(server, 2*time.Minute); err != nil {
		t.Fatalf("the server outlived its owner: %v", err)
	}
	next, err := newOwnedDir("wrktalk-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	defer next.remove()
	if _, err := os.Stat(home); !os.IsNotExist(err) {
		t.Errorf("the server's directory is still there: %v", err)
	}
}

// postmaster returns a pidfd of the server whose directory is home.
func postmaster(home string) (int, error) {
	data, err := os.ReadFile(filepath.Join(home, "data", "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0, err
	}
	return unix.PidfdOpen(pid, 0)
}

func TestEverySchemaLoads(t *testing.T) {
	for name, schema := range Schemas {
		t.Run(name, func(t *testing.T) {
			db := Database(t, schema)
			if got := db.SQL(t, "SELECT count(*) FROM agent_task"); got != "0" {
				t.Errorf("a new database holds %s tasks", got)
			}
			typ := db.SQL(t, "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'agent_task'::regclass AND attname = 'status'")
			if enum := schema&NativeEnums != 0; enum != (typ == "task_status") {
				t.Errorf("status is of type %s", typ)
			}
		})
	}
}

// A process that dies leaves its directory, and the next one removes it; that
// of a living process stays.
func TestLeftoverIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dead, err := newOwnedDir("leftover-")
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // what the kernel does when the owner dies
	alive, err := newOwnedDir("leftover-")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.remove()
	next, err := newOwnedDir("leftover-")
	if err != nil {
		t.Fatal(err)
	}
	defer next.remove()
	if _, err := os.Stat(dead.path); !os.IsNotExist(err) {
		t.Errorf("the leftover is still there: %v", err)
	}
	if _, err := os.Stat(alive.path); err != nil {
		t.Errorf("the directory of a living owner is gone: %v", err)
	}
}

func TestServerIsGoneAfterStop(t *testing.T) {
	p, err := StartPostgres(PostgresOptions{Password: "a b'c"})
	if err != nil {
		if errors.Is(err, ErrNoPostgres) {
			Missing(t, "PostgreSQL", err)
		}
		t.Fatal(err)
	}
	pid, home := p.server.Pid, p.home.path
	if err := p.Restart(); err != nil {
		t.Error(err)
	}
	pid2 := p.server.Pid
	p.Stop()
	p.Stop() // twice is as good as once
	for _, pid := range []int{pid, pid2} {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("server %d still runs", pid)
		}
	}
	if left, _ := filepath.Glob(home + "*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
