package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

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
		if strings.Contains(err.Error(), ErrNoPostgres.Error()) {
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
