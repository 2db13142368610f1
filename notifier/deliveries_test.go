package notifier_test

import (
	"os"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/notifier"
)

// Older versions of the agent, which knew mail alone, recorded no channel.
func TestDeliveriesWithoutAChannelWentBySMTP(t *testing.T) {
	f := newFixture(t)
	st := f.finished("a", outcomes()["success"])
	const old = `{
  "schema": 1,
  "created_at": "2026-11-23T13:39:15Z",
  "deliveries": [
    {"address": "ada@example.com", "message_id": "1@example.com", "state": "sent", "attempts": 1, "updated_at": "2026-11-23T13:39:16Z"},
    {"address": "bob@example.com", "message_id": "2@example.com", "state": "pending", "attempts": 1, "updated_at": "2026-11-23T13:39:16Z"}
  ]
}
`
	if err := os.WriteFile(st.Path(notifier.DeliveriesFile), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := notifier.ReadDeliveries(st)
	if err != nil || len(l.List) != 2 || l.List[0].Channel != "smtp" || l.List[1].Channel != "smtp" {
		t.Fatalf("read %+v (%v)", l, err)
	}
	stop := f.run(notifier.Options{Keep: 1})
	mails := f.mails(1)
	if id := messageIDs(t, mails)[0]; mails[0].To[0] != "bob@example.com" || id != "<2@example.com>" {
		t.Errorf("%s went to %q", id, mails[0].To)
	}
	f.log.Await(f.ctx, t, "mail sent")
	stop()
	data, err := os.ReadFile(st.Path(notifier.DeliveriesFile))
	if err != nil || strings.Count(string(data), `"channel": "smtp"`) != 2 {
		t.Errorf("the record is now %s (%v)", data, err)
	}
}

// A channel that is gone from the agent leaves nothing pending for ever.
func TestDeliveryOfAnUnknownChannelIsCancelled(t *testing.T) {
	f := newFixture(t)
	st := f.finished("a", outcomes()["success"])
	const record = `{"schema": 1, "created_at": "2026-11-23T13:39:15Z", "deliveries": [
		{"channel": "pigeon", "address": "loft", "state": "pending", "attempts": 0, "updated_at": "2026-11-23T13:39:16Z"}]}`
	if err := os.WriteFile(st.Path(notifier.DeliveriesFile), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	f.run(notifier.Options{})
	f.gone()
	f.mails(0)
	if log := f.log.String(); !strings.Contains(log, `no channel \"pigeon\"`) || strings.Contains(log, "level=ERROR") {
		t.Errorf("log says\n%s", log)
	}
}
