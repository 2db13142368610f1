package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// Without a terminal, flags say what is written; mail is tried at once.
func TestSetup(t *testing.T) {
	t.Parallel()
	d := newOperatorEnv(t)
	d.raw.SQL(t, "delete from deployment_config; delete from admin")
	server, err := testenv.StartSMTP(testenv.SMTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(d.dir, "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args []string
		code int
		says string
		row  string
	}{
		{nil, exitUsage, "there is no terminal to ask on", ""},
		{[]string{"--admin", "nobody"}, exitUsage, `"nobody" is no address of an administrator`, ""},
		{[]string{"--smtp-password-file", filepath.Join(d.dir, "none")}, exitUsage, "no such file", ""},
		{[]string{"--admin", "Ann <ann@example.com>"}, exitDone, "ann@example.com is mailed from now on\nno mail is sent: smtp_host is empty", "docker||||"},
		{
			[]string{"--smtp-host", host, "--smtp-port", port, "--smtp-from", "deploy@example.com"},
			exitDone,
			"mail goes through " + host, "docker|" + host + "|" + port + "||",
		},
		{[]string{"--smtp-user", "u", "--smtp-password-file", password, "--smtp-port", "1"}, exitFailed, "the settings are written, but: ", "docker|" + host + "|1|u|correct horse"},
		{[]string{"--smtp-host", ""}, exitDone, "no mail is sent", "docker||1|u|correct horse"},
	} {
		out, complaint, code := d.run(append([]string{"setup"}, step.args...)...)
		if code != step.code || !strings.Contains(out+complaint, step.says) {
			t.Errorf("setup %q: exit code %d, %s%s; want %d and %q", step.args, code, out, complaint, step.code, step.says)
		}
		row := d.raw.SQL(t, "select deployment_type, smtp_host, smtp_port, smtp_user, smtp_password from deployment_config")
		if row != step.row {
			t.Errorf("setup %q: the row holds %q, want %q", step.args, row, step.row)
		}
		if strings.Contains(out+complaint, "correct horse") {
			t.Errorf("setup %q shows the password", step.args)
		}
	}
}

// On a terminal, a person is asked for what may be changed.
func TestSetupAsks(t *testing.T) {
	t.Parallel()
	now := taskdb.MailSettings{Host: "old.example.com", Port: 25, User: "u", Password: "p", From: "a@example.com"}
	for name, test := range map[string]struct {
		now     taskdb.MailSettings
		answers string
		secret  string
		want    taskdb.Setup
	}{
		"nothing changes":  {now, "\n\n\n\n\n", "", taskdb.Setup{}},
		"without a server": {taskdb.MailSettings{}, "\nAnn <ann@example.com>\n\n", "not asked for", taskdb.Setup{Admins: []taskdb.Admin{{Name: "Ann", Email: "ann@example.com"}}}},
		"all of it": {
			taskdb.MailSettings{},
			"mail.example.com\nx\n465\nagent\ndeploy@example.com\nnobody\nann@example.com\n\n", "secret",
			taskdb.Setup{
				Host: new("mail.example.com"), Port: new(465), User: new("agent"), Password: new("secret"), From: new("deploy@example.com"),
				Admins: []taskdb.Admin{{Email: "ann@example.com"}},
			},
		},
		"removed": {now, "-\n\n", "not asked for", taskdb.Setup{Host: new("")}},
		"partly":  {now, "\n-\n-\n\n\n", "-", taskdb.Setup{Port: new(0), User: new(""), Password: new("")}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			q := &questions{in: bufio.NewReader(strings.NewReader(test.answers)), out: &out, secret: func() (string, error) { return test.secret, nil }}
			got, err := q.ask(test.now, []taskdb.Admin{{Email: "bob@example.com"}})
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, %v, want %+v; asked:\n%s", got, err, test.want, out.String())
			}
			if rest, _ := io.ReadAll(q.in); len(rest) > 0 {
				t.Errorf("%q was not asked for:\n%s", rest, out.String())
			}
			if !strings.Contains(out.String(), "bob@example.com is mailed.") || strings.Contains(out.String(), "secret") {
				t.Errorf("it says:\n%s", out.String())
			}
		})
	}
	q := &questions{in: bufio.NewReader(strings.NewReader("mail.example.com\n")), out: io.Discard}
	if _, err := q.ask(taskdb.MailSettings{}, nil); err == nil || !strings.Contains(err.Error(), "nothing was written") {
		t.Errorf("answers that end early: %v", err)
	}
}
