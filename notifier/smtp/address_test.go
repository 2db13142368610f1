package smtp

import (
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

func TestHostileAddressesAreRefused(t *testing.T) {
	for _, hostile := range []string{
		"a@example.com\r\nRCPT TO:<b@example.com>", "a@example.com\nBcc: b@example.com", "a@example.com, b@example.com",
		"\"x\r\n\" <a@example.com>", "a@example.com\x00", "no address", "", "<>", "a@", "@b", "a b@example.com", "a@example.com>",
	} {
		if a, err := parseAddress(hostile); err == nil {
			t.Errorf("%q is taken for the address %q", hostile, a)
		}
	}
}

func TestSenderFallsBackToTheLogin(t *testing.T) {
	for _, c := range []struct {
		s    taskdb.MailSettings
		want string
	}{
		{taskdb.MailSettings{From: "a@b.c"}, "<a@b.c>"},
		{taskdb.MailSettings{From: "X <a@b.c>", User: "u@b.c"}, `"X" <a@b.c>`},
		{taskdb.MailSettings{From: "WrkTalk [prod] <a@b.c>"}, `"WrkTalk [prod]" <a@b.c>`},
		{taskdb.MailSettings{From: "Smith, John <a@b.c>"}, `"Smith, John" <a@b.c>`},
		{taskdb.MailSettings{From: `Acme (Ops): "night" <a@b.c>`}, `"Acme (Ops): night" <a@b.c>`},
		{taskdb.MailSettings{From: "a@b.c <a@b.c>"}, `"a@b.c" <a@b.c>`},
		{taskdb.MailSettings{From: "Ops. Team <a@b.c>"}, `"Ops. Team" <a@b.c>`},
		{taskdb.MailSettings{From: "a@b.c, b@b.c <c@b.c>"}, ""},
		{taskdb.MailSettings{From: "A <a@b.c>, B, C <b@b.c>"}, ""},
		{taskdb.MailSettings{From: "Büro <a@bücher.example>"}, `=?utf-8?q?B=C3=BCro?= <a@xn--bcher-kva.example>`},
		{taskdb.MailSettings{From: "  ", User: "u@b.c"}, "<u@b.c>"},
		{taskdb.MailSettings{User: "justauser"}, ""},
		{taskdb.MailSettings{}, ""},
	} {
		a, err := sender(c.s)
		if (err != nil) != (c.want == "") || err == nil && a.String() != c.want {
			t.Errorf("%v: got %v, %v", c.s, a, err)
		}
	}
}
