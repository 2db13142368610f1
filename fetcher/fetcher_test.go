package fetcher

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// A due row becomes a ready directory that verifies, and the fetcher takes
// nothing else while that lies there.
func TestRowBecomesReady(t *testing.T) {
	b := newBench(t)
	id := b.ask("deploy", b.good("1.0.0"))
	b.start()
	dir, m := b.staged()
	if m.TaskID != id || m.Refusal != "" || m.Release.Version != "1.0.0" || m.Token == "" {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
	for name, text := range content {
		if got := b.read(dir, "payload/"+name); got != text {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if got := b.read(dir, staging.EnvFile); got != "API_TOKEN=secret" {
		t.Errorf("the env holds %q", got)
	}
	second := b.ask("deploy", m.Release.ArtifactID)
	for range 2 { // two more looks, each of which is told to Run's caller
		b.raw.SQL(t, `delete from deployment_config; insert into deployment_config (deployment_type) values ('docker')`)
		b.halt()
		b.start()
		b.eventually("it looks", func() bool {
			return b.raw.SQL(t, `select last_agent_poll is not null from deployment_config`) == "t"
		})
	}
	if got := b.status(second); got != "pending" {
		t.Errorf("the second task is %s", got)
	}
}

// What cannot be staged is published as a refusal that says why, without
// anything of the release. Defects 5, 6, 7 and 10.
func TestDefects05To07Refusals(t *testing.T) {
	for _, c := range []struct {
		name, kind, want string
		artifact         func(b *bench) string
	}{
		{"unknown kind", "reboot", `task type "reboot" is not known`, func(b *bench) string { return b.good("1.0.0") }},
		{"no artifact", "deploy", "names no release artifact", func(*bench) string { return "" }},
		{"nothing to go back to", "rollback", "no compose artifact is flagged is_previous", func(*bench) string { return "" }},
		{"wrong digest", "deploy", "does not match its sha256", func(b *bench) string {
			return b.release("1.0.0", "compose", tarball(t, content), sum(nil))
		}},
		{"no digest", "deploy", "no usable sha256", func(b *bench) string { return b.release("1.0.0", "compose", tarball(t, content), "abc") }},
		{"traversal", "deploy", "../evil", func(b *bench) string {
			data := tarball(t, map[string]string{"../evil": "x"})
			return b.release("1.0.0", "compose", data, sum(data))
		}},
		{"too large", "deploy", "bytes", func(b *bench) string {
			data := tarball(t, map[string]string{"big": strings.Repeat("x", 2<<20)})
			return b.release("1.0.0", "compose", data, sum(data))
		}},
		{"env too large", "deploy", "its env_data holds 4194305 bytes", func(b *bench) string {
			id := b.good("1.0.0")
			b.raw.SQL(b.t, `update release_artifact set env_data = repeat('x', (4 << 20) + 1)`)
			return id
		}},
		{"values too large", "deploy", "its values_data holds 8388609 bytes", func(b *bench) string {
			id := b.good("1.0.0")
			b.raw.SQL(b.t, `update release_artifact set values_data = repeat('x', (8 << 20) + 1)`)
			return id
		}},
		// The list of a huge release takes minutes to make; a row can do the same.
		{"manifest too large", "deploy", "the document is too large", func(b *bench) string {
			id, serves := b.good("1.0.0"), b.good("0.9.0")
			b.raw.SQL(b.t, `alter table release_artifact alter sha256 type text;
				update release_artifact set is_current = true, sha256 = repeat('a', 65 << 20) where id = '`+serves+`'`)
			return id
		}},
		{"missing column", "deploy", "staging failed: read artifact", func(b *bench) string {
			id := b.good("1.0.0")
			b.raw.SQL(b.t, `alter table release_artifact drop column values_data`)
			return id
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			id := b.ask(c.kind, c.artifact(b))
			b.start()
			dir, m := b.staged()
			if m.TaskID != id || !strings.Contains(m.Refusal, c.want) || strings.Contains(m.Refusal, "\n") || len(m.Files) != 0 {
				t.Errorf("manifest is %+v, want a refusal with %q", m, c.want)
			}
			for _, name := range []string{staging.PayloadDir, staging.EnvFile} {
				if _, err := os.Lstat(dir.Path(name)); err == nil {
					t.Errorf("%s was left", name)
				}
			}
		})
	}
}

// Stop with nothing to do ends the fetcher at once, whatever its timers say.
func TestDefect16IdleFetcherStopsAtOnce(t *testing.T) {
	b := newBench(t) // polls every hour
	b.start()
	b.eventually("it has looked", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.log.Len() > 0 })
	b.halt()
}

// draft leaves what a fetcher leaves that is killed in the middle of staging.
func (b *bench) draft(change func(*staging.Manifest)) string {
	b.t.Helper()
	b.open()
	var d *staging.Draft
	c, err := b.db.Claim(b.t.Context(), b.opts.Target, taskdb.ClaimOptions{
		Lease: time.Hour, Claim: true,
		Record: func(t taskdb.Task) (err error) {
			m := manifestOf(t)
			change(&m)
			if d, err = b.dir.Create(staging.Name(m.ClaimedAt, m.Kind, t.Version, m.TaskID)); err != nil {
				return err
			}
			return d.SetClaim(m)
		},
	})
	if err != nil || c.Task == nil {
		b.t.Fatalf("claim returns %+v, %v", c, err)
	}
	for _, err := range []error{
		d.Root().Mkdir(staging.PayloadDir, 0o700),
		d.Root().WriteFile("payload/half", []byte("half a file"), 0o600),
		d.Root().WriteFile(staging.EnvFile, []byte("API_TOKEN=stale"), 0o600),
		d.Close(), // as the end of its fetcher does
	} {
		if err != nil {
			b.t.Fatal(err)
		}
	}
	name := d.Task().Name
	b.halt()
	return name
}

// A draft whose claim holds is staged anew under its token, from nothing: not
// with what the predecessor had found or refused.
func TestADraftIsTakenUp(t *testing.T) {
	b := newBench(t)
	id := b.ask("deploy", b.good("1.0.0"))
	var token string
	b.draft(func(m *staging.Manifest) {
		token = string(m.Token)
		m.Refusal, m.PreviousStaged = "no space left on device", true
		m.Previous = &staging.Release{Version: "0.9.0"}
	})
	b.start()
	dir, m := b.staged()
	if m.TaskID != id || string(m.Token) != token || m.Refusal != "" || m.PreviousStaged || m.Previous != nil {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
}

// What serves now and cannot be staged with all its env is not offered to go
// back to, and hinders no new release.
func TestAnUnusablePreviousRelease(t *testing.T) {
	b := newBench(t)
	b.opts.Kept = func(string, string) bool { return true }
	serves := b.good("0.9.0")
	b.raw.SQL(t, `update release_artifact set is_current = true, env_data = repeat('x', (4 << 20) + 1) where id = '`+serves+`'`)
	b.ask("deploy", b.good("1.0.0"))
	b.start()
	dir, m := b.staged()
	if m.Refusal != "" || m.Previous != nil || m.PreviousStaged {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
}

// A task that killed its fetcher as often as it may is refused, not staged
// again.
func TestStagingIsNotBegunForEver(t *testing.T) {
	for starts, want := range map[int]string{2: "", 3: "staging began 3 times"} {
		b := newBench(t)
		b.opts.MaxAttempts = 3
		b.ask("deploy", b.good("1.0.0"))
		b.draft(func(m *staging.Manifest) { m.Starts = starts })
		b.start()
		_, m := b.staged()
		if (m.Refusal == "") != (want == "") || !strings.Contains(m.Refusal, want) || m.Starts != starts+1 {
			t.Errorf("after %d starts the manifest is %+v", starts, m)
		}
		b.halt()
	}
}

// A start is counted before anything can go wrong with it, and forgotten when
// the agent was only stopped.
func TestAStopIsNoAttempt(t *testing.T) {
	b := newBench(t)
	b.opts.MaxAttempts = 1
	b.ask("deploy", b.good("1.0.0"))
	b.proxy.LoseReplyTo("substring", 1<<20) // so that staging is tried again and again
	for range 3 {
		b.start()
		b.eventually("it stages", func() bool {
			tasks := b.list(staging.Tmp)
			if len(tasks) == 0 {
				return false
			}
			m, err := tasks[0].Manifest()
			return err == nil && m.Starts == 1 && b.proxy.Lost() > 0
		})
		b.halt()
		m, err := b.list(staging.Tmp)[0].Manifest()
		if err != nil || m.Starts != 0 {
			t.Fatalf("the draft says %+v, %v", m, err)
		}
		b.proxy.LoseReplyTo("substring", 1<<20)
	}
	b.proxy.LoseReplyTo("substring", 0)
	b.start()
	if _, m := b.staged(); m.Refusal != "" {
		t.Errorf("refused: %s", m.Refusal)
	}
}

// A migration of the database is noticed without a restart.
func TestNotifyIsTurnedOnByAMigration(t *testing.T) {
	b := newBench(t) // polls every hour
	b.again = 20 * time.Millisecond
	b.start()
	b.eventually("it polls", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.said && strings.Contains(b.log.String(), "found by polling")
	})
	if err := b.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := b.ask("deploy", b.good("1.0.0"))
	if _, m := b.staged(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := strings.Count(b.log.String(), "found by polling"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}

// A draft whose claim was lost, and one that nobody can read, are shredded.
func TestADraftIsDiscarded(t *testing.T) {
	for name, spoil := range map[string]func(b *bench, dir string){
		"claim lost": func(b *bench, _ string) {
			b.raw.SQL(t, `update agent_task set picked_up_at = now(), last_heartbeat = now() + interval '1 hour'`)
		},
		"unreadable": func(b *bench, dir string) {
			if err := os.WriteFile(dir+"/manifest.json", []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"no claim": func(b *bench, dir string) {
			if err := os.Remove(dir + "/manifest.json"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.ask("deploy", b.good("1.0.0"))
			draft := b.draft(func(*staging.Manifest) {})
			spoil(b, b.staging+"/tmp/"+draft)
			b.start()
			b.eventually("the draft is gone", func() bool { return len(b.list(staging.Tmp)) == 0 })
			if got := b.list(staging.Ready); len(got) != 0 {
				t.Errorf("%s was staged", got[0].Name)
			}
		})
	}
}

// A claim whose commit got no reply, while the database then was away, is not
// left to its lease: it is staged once the database says that it holds.
func TestAClaimOfUnknownEndIsKept(t *testing.T) {
	b := newBench(t)
	b.useOneConnection() // so that no other one can ask
	id := b.ask("deploy", b.good("1.0.0"))
	// The commit itself closes the database to new connections.
	b.raw.SQL(t, `create function close_down() returns trigger language plpgsql as
			'begin update pg_database set datallowconn = false where datname = current_database(); return null; end';
		create constraint trigger close_down after update on agent_task deferrable initially deferred
			for each row execute function close_down()`)
	b.proxy.LoseReplyTo("commit", 1)
	b.start()
	b.eventually("the fetcher gives up looking for the answer", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return strings.Contains(b.log.String(), "cannot be confirmed")
	})
	if got := b.list(staging.Tmp); len(got) != 1 {
		t.Fatalf("%d drafts are left, want 1", len(got))
	}
	b.eventually("the fetcher says that it is not ready", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.reason != ""
	})
	for _, c := range []struct{ db, sql string }{
		{"postgres", fmt.Sprintf(`update pg_database set datallowconn = true where datname = '%s'`, b.raw.Name)},
		{b.raw.Name, `drop trigger close_down on agent_task; update pg_database set datallowconn = true where datname = current_database()`},
	} {
		b.eventually("the database is open again", func() bool {
			_, err := b.raw.Server.SQL(c.db, c.sql)
			return err == nil
		})
	}
	_, m := b.staged()
	if m.TaskID != id || b.status(id) != "inProgress" {
		t.Errorf("manifest is %+v, the task is %s", m, b.status(id))
	}
}

// A stop while the database is away leaves the draft to the next start, which
// takes it up.
func TestStopWhileStaging(t *testing.T) {
	b := newBench(t)
	id := b.ask("deploy", b.good("1.0.0"))
	b.draft(func(*staging.Manifest) {})
	b.proxy.Refuse(true)
	b.start()
	b.eventually("it says what is wrong", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.reason != "" })
	b.halt()
	if got := b.list(staging.Tmp); len(got) != 1 {
		t.Fatalf("%d drafts are left, want 1", len(got))
	}
	b.proxy.Refuse(false)
	b.start()
	if _, m := b.staged(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
}

// A claim that is lost while its release is staged ends the staging, and
// nothing of it stays.
func TestLostWhileStaging(t *testing.T) {
	b := newBench(t)
	b.opts.Heartbeat = 50 * time.Millisecond
	id := b.ask("deploy", b.good("1.0.0"))
	b.proxy.LoseReplyTo("substring", 1<<20) // so that staging is tried again and again
	b.start()
	b.eventually("it is claimed", func() bool { return b.status(id) == "inProgress" })
	b.raw.SQL(t, fmt.Sprintf(`update agent_task set status = 'failed' where id = '%s'`, id))
	b.eventually("the draft is gone", func() bool { return len(b.list(staging.Tmp)) == 0 })
	if got := b.list(staging.Ready); len(got) != 0 {
		t.Errorf("%s was staged", got[0].Name)
	}
}

func TestBackoff(t *testing.T) {
	f := &Fetcher{Options: Options{Poll: time.Hour}}
	for n := 1; n < 100; n++ {
		if got := f.backoff(n); got <= 0 || got > longestBackoff {
			t.Errorf("backoff %d is %s", n, got)
		}
	}
}
