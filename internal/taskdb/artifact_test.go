package taskdb_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func pushBytes(t testing.TB, db *taskdb.DB, chart task.ChartType, version string, data []byte) string {
	t.Helper()
	id, err := db.Push(t.Context(), taskdb.NewArtifact{
		Version: version, ChartType: chart, Data: bytes.NewReader(data), Size: int64(len(data)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestArtifactGoesInAndComesOut(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		data := noise(3<<20 + 17)
		sum := sha256.Sum256(data)
		env, values := "A=1\nB='ü'\n", ""
		id, err := db.Push(t.Context(), taskdb.NewArtifact{
			Version: "2.5.0", ChartType: task.ChartCompose, Data: iotest.HalfReader(bytes.NewReader(data)), Size: int64(len(data)),
			SHA256: strings.ToUpper(hex.EncodeToString(sum[:])), Env: &env, Values: &values,
		})
		if err != nil {
			t.Fatal(err)
		}
		a, err := db.Artifact(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if a.Version != "2.5.0" || a.ChartType != task.ChartCompose || a.Size != int64(len(data)) ||
			a.SHA256 != hex.EncodeToString(sum[:]) || *a.Env != env || *a.Values != "" || a.IsCurrent || a.IsPrevious || a.CreatedAt == nil {
			t.Errorf("the artifact came out as %+v", a)
		}
		got, err := io.ReadAll(db.Read(t.Context(), id, a.Size))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes of %d, equal: %v, error: %v", len(got), len(data), bytes.Equal(got, data), err)
		}
		byVersion, err := db.ArtifactByVersion(t.Context(), task.ChartCompose, "2.5.0")
		if err != nil || byVersion.ID != id {
			t.Errorf("by version: %+v, %v", byVersion, err)
		}
	})
}

// Texts that nothing could deploy are measured, not read.
func TestArtifactLeavesHugeTextsAlone(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	id := pushArtifact(t, db, task.ChartCompose, "1")
	for _, more := range []int{0, 1} {
		raw.SQL(t, fmt.Sprintf("update release_artifact set env_data = repeat('e', %d), values_data = repeat('v', %d)", taskdb.MaxEnv+more, taskdb.MaxValues+more))
		a, err := db.Artifact(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if a.EnvSize != int64(taskdb.MaxEnv+more) || a.ValuesSize != int64(taskdb.MaxValues+more) || (a.Env == nil) != (more > 0) || (a.Values == nil) != (more > 0) {
			t.Errorf("%d bytes too many: sizes %d and %d, read %v and %v", more, a.EnvSize, a.ValuesSize, a.Env != nil, a.Values != nil)
		}
	}
}

func TestArtifactsAreListed(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		var ids []string
		for _, version := range []string{"1.0.0", "1.1.0", "1.2.0"} {
			ids = append(ids, pushBytes(t, db, task.ChartCompose, version, noise(1000)))
			raw.SQL(t, "update release_artifact set created_at = created_at - interval '1 hour'")
		}
		pushBytes(t, db, task.ChartHelm, "3.0.0", noise(10))
		raw.SQL(t, "update release_artifact set is_current = true, applied_at = now() where release_version = '1.1.0'")
		all, err := db.Artifacts(t.Context(), task.ChartCompose, 0)
		if err != nil || len(all) != 3 {
			t.Fatalf("%d artifacts, %v", len(all), err)
		}
		for i, a := range all {
			if want := ids[2-i]; a.ID != want || a.Size != 1000 || len(a.SHA256) != 64 || a.IsCurrent != (i == 1) || (a.AppliedAt != nil) != (i == 1) || a.CreatedAt == nil {
				t.Errorf("artifact %d is %+v, want %s", i, a, want)
			}
		}
		if two, err := db.Artifacts(t.Context(), task.ChartCompose, 2); err != nil || len(two) != 2 || two[0].ID != ids[2] {
			t.Errorf("%+v, %v", two, err)
		}
	})
}

func TestArtifactIsNotThere(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		for _, id := range []string{"", "no-uuid", "7c8d6a6e-0000-4000-8000-000000000000"} {
			if _, err := db.Artifact(t.Context(), id); !errors.Is(err, taskdb.ErrNotFound) {
				t.Errorf("artifact %q: %v", id, err)
			}
			if _, err := io.ReadAll(db.Read(t.Context(), id, 1)); !errors.Is(err, taskdb.ErrArtifactGone) && !errors.Is(err, taskdb.ErrNotFound) {
				t.Errorf("read %q: %v", id, err)
			}
		}
		if _, err := db.Current(t.Context(), task.ChartHelm); !errors.Is(err, taskdb.ErrNotFound) {
			t.Errorf("current: %v", err)
		}
	})
}

func TestPushRefusesWhatIsNotAsPromised(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	data := noise(100_000)
	bad := errors.New("disk broke")
	for name, test := range map[string]struct {
		artifact taskdb.NewArtifact
		want     string
	}{
		"digest":  {taskdb.NewArtifact{Size: 100_000, Data: bytes.NewReader(data), SHA256: strings.Repeat("a", 64)}, "sha256"},
		"shorter": {taskdb.NewArtifact{Size: 100_001, Data: bytes.NewReader(data)}, "shrank"},
		"longer":  {taskdb.NewArtifact{Size: 99_999, Data: bytes.NewReader(data)}, "grew"},
		"broken":  {taskdb.NewArtifact{Size: 100_000, Data: io.MultiReader(bytes.NewReader(data[:5]), iotest.ErrReader(bad))}, "disk broke"},
		"empty":   {taskdb.NewArtifact{Data: bytes.NewReader(nil)}, "empty"},
		"huge":    {taskdb.NewArtifact{Size: 2 << 30, Data: bytes.NewReader(nil)}, "at most"},
		"env":     {taskdb.NewArtifact{Size: 1, Data: bytes.NewReader(data), Env: new(strings.Repeat("e", taskdb.MaxEnv+1))}, "the env text holds 4194305 bytes"},
		"values":  {taskdb.NewArtifact{Size: 1, Data: bytes.NewReader(data), Values: new(strings.Repeat("v", taskdb.MaxValues+1))}, "the values text holds"},
		"nul":     {taskdb.NewArtifact{Size: 1, Data: bytes.NewReader(data), Env: new("a\x00b")}, "NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			test.artifact.Version, test.artifact.ChartType = "1", task.ChartHelm
			if _, err := db.Push(t.Context(), test.artifact); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("push returned %v", err)
			}
		})
	}
	if n := raw.SQL(t, "select count(*) from release_artifact"); n != "0" {
		t.Errorf("%s artifacts were stored", n)
	}
	pushArtifact(t, db, task.ChartHelm, "the pool still works")
}

func TestReadNoticesAnArtifactThatChanges(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"vanished": "delete from release_artifact",
		"shrank":   "update release_artifact set artifact_data = substring(artifact_data from 1 for 1500000)",
		"grew":     "update release_artifact set artifact_data = artifact_data || 'x'::bytea",
	} {
		t.Run(name, func(t *testing.T) {
			raw := testenv.Database(t)
			db := open(t, raw.ConnString)
			r := db.Read(t.Context(), pushBytes(t, db, task.ChartHelm, "1", noise(3<<20)), 3<<20)
			if _, err := io.CopyN(io.Discard, r, 10); err != nil {
				t.Fatal(err)
			}
			raw.SQL(t, change)
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, taskdb.ErrArtifactGone) {
				t.Errorf("read on: %v", err)
			}
		})
	}
}

func TestReadSurvivesCutConnections(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	data := noise(5 << 20)
	id := pushBytes(t, open(t, raw.ConnString), task.ChartHelm, "1", data)

	r := open(t, through).Read(t.Context(), id, int64(len(data)))
	got := make([]byte, 0, len(data))
	for i := range 3 {
		proxy.CutAfter(700_000) // in the middle of the next slice
		piece := make([]byte, 1<<20)
		if _, err := io.ReadFull(r, piece); err != nil {
			t.Fatalf("slice %d: %v", i, err)
		}
		got = append(got, piece...)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), data) {
		t.Errorf("the bytes differ, or: %v", err)
	}
	if proxy.Connections() < 4 {
		t.Errorf("only %d connections were made: nothing was cut", proxy.Connections())
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	id := pushBytes(t, open(t, raw.ConnString), task.ChartHelm, "1", noise(100))
	proxy.Refuse(true)
	short, cancel := contextWithTimeout(t, 300*time.Millisecond)
	defer cancel()
	if _, err := io.ReadAll(open(t, through).Read(short, id, 100)); !errors.Is(err, short.Err()) {
		t.Errorf("read from a server that is gone: %v", err)
	}
}

// A server that stays away ends the reading: somebody has to say so.
func TestReadGivesUp(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	id := pushBytes(t, open(t, raw.ConnString), task.ChartHelm, "1", noise(100))
	proxy.LoseReplyTo("substring", 1<<20)
	ctx, cancel := contextWithTimeout(t, 10*time.Minute)
	defer cancel()
	_, err := io.ReadAll(open(t, through).Read(ctx, id, 100))
	if ctx.Err() != nil || !taskdb.Transient(err) || proxy.Lost() != 5 {
		t.Errorf("after %d attempts: %v", proxy.Lost(), err)
	}
}

// TestDefect26ArtifactIsReadOnceInConstantMemory pushes and reads 200 MB.
// It measures the memory of the process, so no other test runs beside it.
func TestDefect26ArtifactIsReadOnceInConstantMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 200 MB")
	}
	const size = 200_000_000
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	rng := rand.NewChaCha8([32]byte{2})
	peak := watchHeap(t)
	started := time.Now()
	id, err := db.Push(t.Context(), taskdb.NewArtifact{
		Version: "big", ChartType: task.ChartHelm, Data: io.LimitReader(rng, size), Size: size,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pushed %d bytes in %s, heap at most %d KiB", size, time.Since(started).Round(time.Millisecond), peak()>>10)
	a, err := db.Artifact(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	peak = watchHeap(t)
	started = time.Now()
	h := sha256.New()
	n, err := io.Copy(h, db.Read(t.Context(), id, a.Size))
	if err != nil || n != size || hex.EncodeToString(h.Sum(nil)) != a.SHA256 {
		t.Fatalf("read %d bytes with digest %x: %v", n, h.Sum(nil), err)
	}
	most := peak()
	t.Logf("read %d bytes in %s, heap at most %d KiB", size, time.Since(started).Round(time.Millisecond), most>>10)
	if most > 16<<20 {
		t.Errorf("the heap grew to %d bytes for an artifact of %d", most, size)
	}
}

// watchHeap samples the heap in use until the returned function is called,
// which returns the largest value seen.
func watchHeap(t *testing.T) func() uint64 {
	runtime.GC()
	stop, result := make(chan struct{}), make(chan uint64, 1)
	go func() {
		var most uint64
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-ticker.C:
			case <-stop:
				result <- most
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-result }
}
