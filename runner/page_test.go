package runner

import (
	"os"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// Who follows a task is told when the page is not up, and who reads of its end as well.
func TestPageThatCannotBePutUpIsInTheTimeline(t *testing.T) {
	b := newFixture(t, "good", "")
	b.page = "/dev/null/page"
	b.opts.Maintenance = b.maintenance()
	_, name := b.ready()
	b.start()
	const text = "the maintenance page could not be put up: "
	if o := b.outcome(name); !o.Succeeded || !strings.Contains(o.Message, text) {
		t.Errorf("outcome is %+v", o)
	}
	events, err := os.ReadFile(b.in(name, staging.Done, staging.EventsFile))
	if err != nil || !strings.Contains(string(events), text) {
		t.Errorf("the timeline is %s, %v", events, err)
	}
}
