package supervisor

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// The test binary is its own helper: as "component NAME MODE ARG..." it is a
// component, as "supervisor ..." the whole agent, as "hold" a grandchild.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "component":
			os.Exit(component(os.Args[2], os.Args[3], os.Args[4:]))
		case "supervisor":
			os.Exit(superviseAlone(os.Args[2:]))
		case "hold":
			hold()
		}
	}
	// Otherwise a component built with -race sleeps for a second as it exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

// hold says that it is there and stays, deaf to every polite request.
func hold() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	fds := descriptors()
	fmt.Printf(`{"msg":"holding","pid":%d,"descriptors":%q,"control-pipe":%q}`+"\n", os.Getpid(), fds, os.Getenv(controlpipe.EnvVar))
	for {
		time.Sleep(time.Hour)
	}
}

// descriptors names this process's open descriptors above 2.
func descriptors() string {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err.Error()
	}
	var open []string
	for _, e := range list {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if n, _ := strconv.Atoi(e.Name()); err == nil && n > 2 {
			open = append(open, e.Name()+"="+to)
		}
	}
	return strings.Join(open, " ")
}

// words are what a component in mode leave says as it dies: fewer than a pipe
// holds, more than is read from it at a time.
const words = 3000

// component is what a component of the agent does, as far as a supervisor can
// see, and what it should not do.
func component(name, mode string, args []string) int {
	if mode == "deaf" { // knows nothing of control pipes
		fmt.Printf(`{"msg":"serving","component":%q,"pid":%d}`+"\n", name, os.Getpid())
		for { // an empty select is a deadlock to a runtime without cgo, which ends the process
			time.Sleep(time.Hour)
		}
	}
	line, err := controlpipe.FromEnv()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("component", name)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)

	switch mode {
	case "serve": // stops when asked, after working for args[0]
		line.Ready("")
		log.Info("serving", "pid", os.Getpid(), "pgid", syscall.Getpgrp())
		asked(line, signals, log)
		if len(args) > 0 {
			d, _ := time.ParseDuration(args[0])
			<-time.After(d)
		}
		log.Info("bye")
	case "unready": // never becomes ready
		line.Ready(args[0])
		asked(line, signals, log)
	case "count": // reports what it did, and one thing nobody keeps, and dies
		m := telemetry.Recorder(line.Record)
		m.Mail(telemetry.MailSent)
		m.Mail("odd")
		return 1
	case "exit":
		line.Ready("")
		code, _ := strconv.Atoi(args[0])
		return code
	case "panic":
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { select {} })
		}
		panic("cannot go on: " + args[0])
	case "flaky": // dies until the file args[0] exists
		if _, err := os.Stat(args[0]); err != nil {
			return 1
		}
		line.Ready("")
		asked(line, signals, log)
	case "tells": // its configuration, and ends for another one
		signal.Notify(signals, syscall.SIGHUP)
		line.Ready("")
		log.Info("serving", "snapshot", string(line.Snapshot()))
		if <-signals == syscall.SIGHUP {
			log.Info("asked to end for another configuration")
		}
	case "hangs": // after a sign of life, until the file args[0] exists
		line.Ready("")
		if _, err := os.Stat(args[0]); err != nil {
			line.Alive(10 * time.Millisecond)
			for {
				time.Sleep(time.Hour)
			}
		}
		line.Alive(time.Hour)
		log.Info("serving", "pid", os.Getpid())
		asked(line, signals, log)
	case "slow": // a runner with a deployment in flight: ends at the second signal
		line.Ready("")
		asked(line, signals, log)
		log.Info("second request", "signal", (<-signals).String())
	case "careful": // stops in its own time and leaves a note, whatever becomes of its log
		line.Ready("")
		log.Info("serving", "pid", os.Getpid())
		<-line.ParentGone()
		log.Info("nobody hears this")
		fmt.Println("nor this")
		if err := os.WriteFile(args[0], []byte("finished"), 0o600); err != nil {
			return 1
		}
	case "stubborn": // with a grandchild in its group, stops for nobody
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		cmd := exec.Command("/proc/self/exe", "hold")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return 1
		}
		log.Info("serving", "pid", os.Getpid())
		line.Ready("")
		_ = cmd.Wait()
	case "leave": // dies when asked, and leaves a process in another session that keeps stderr open
		cmd := exec.Command("/proc/self/exe", "hold")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Stderr = os.Stderr
		said, err := cmd.StdoutPipe()
		if err != nil || cmd.Start() != nil {
			return 1
		}
		first, _ := bufio.NewReader(said).ReadBytes('\n')
		_, _ = os.Stderr.Write(first)
		asked(line, signals, log)
		for n := range words {
			fmt.Fprintf(os.Stderr, "word %d\n", n)
		}
		return 1
	case "abandon": // dies, and leaves a process in its group
		cmd := exec.Command("/proc/self/exe", "hold")
		said, err := cmd.StdoutPipe()
		if err != nil || cmd.Start() != nil {
			return 1
		}
		_, _ = bufio.NewReader(said).ReadBytes('\n')
		return 1
	case "print": // args[0] on stderr, then on stdout
		line.Ready("")
		fmt.Fprint(os.Stderr, args[0])
		fmt.Fprint(os.Stdout, args[1])
		asked(line, signals, log)
	case "flood": // more than any buffer holds, then ready
		row := bytes.Repeat([]byte("x"), 1023)
		for range 4096 {
			fmt.Fprintf(os.Stderr, "%s\n", row)
		}
		line.Ready("")
		asked(line, signals, log)
	case "snapshot": // says whether it got it, never what
		log.Info("configured", "same", string(line.Snapshot()) == secret, "environment", strings.Join(os.Environ(), " "))
		line.Ready("")
		asked(line, signals, log)
	}
	return 0
}

func asked(line *controlpipe.Conn, signals <-chan os.Signal, log *slog.Logger) {
	select {
	case sig := <-signals:
		log.Info("asked to stop", "signal", sig.String())
	case <-line.ParentGone():
		log.Info("supervisor gone")
	}
}

// superviseAlone is an agent of its own, to be killed: it supervises the
// components given as "name:mode:arg" with a stop limit of args[0].
func superviseAlone(args []string) int {
	limit, _ := time.ParseDuration(args[0])
	cfg := Config{
		Env: os.Environ(), Output: os.Stderr,
		Log: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if os.Getpid() == 1 { // in namespaces of its own: see its own processes
		err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
		if err == nil {
			err = syscall.Mount("proc", "/proc", "proc", 0, "")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for _, a := range args[1:] {
		c := Component{StopTimeout: limit, Args: append([]string{"component"}, strings.SplitN(a, ":", 3)...)}
		c.Name = c.Args[1]
		cfg.Components = append(cfg.Components, c)
	}
	s, err := New(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := s.Run(signals); err != nil {
		return 1
	}
	return 0
}

// comp is a component of the test's own.
func comp(name, mode string, args ...string) Component {
	return Component{Name: name, Args: append([]string{"component", name, mode}, args...)}
}

// copyOfSelf puts the test binary where a test may replace it.
func copyOfSelf(t *testing.T) string {
	t.Helper()
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(t.TempDir(), "agent")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
