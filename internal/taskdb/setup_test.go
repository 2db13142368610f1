package taskdb_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// Settings are written into an empty database, and changed without touching what is
// not named.
func TestSetup(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		ctx := t.Context()
		report, err := db.Setup(ctx, helm, taskdb.Setup{
			Host: new("mail.example.com"), Port: new(2525), User: new("u"), Password: new("p"), From: new("A <a@example.com>"),
			Admins: []taskdb.Admin{{Name: "Ann", Email: "ann@example.com"}, {Email: "bob@example.com"}},
		})
		want := &taskdb.SetupReport{NewRow: true, Added: []string{"ann@example.com", "bob@example.com"}}
		if err != nil || !reflect.DeepEqual(report, want) {
			t.Fatalf("%+v, %v", report, err)
		}
		settings, err := db.MailSettings(ctx, helm)
		if want := (taskdb.MailSettings{Host: "mail.example.com", Port: 2525, User: "u", Password: "p", From: "A <a@example.com>"}); err != nil || settings != want {
			t.Errorf("settings are %+v, %v", settings, err)
		}
		row := raw.SQL(t, "select deployment_type, helm_release_name, namespace from deployment_config")
		if want := "kubernetes|" + helm.Name + "|" + helm.Namespace; row != want {
			t.Errorf("the row holds %s, not %s", row, want)
		}

		raw.SQL(t, "update admin set is_active = false where email like 'bob%'")
		report, err = db.Setup(ctx, compose, taskdb.Setup{
			Port: new(0), User: new(""), Admins: []taskdb.Admin{{Name: "Other", Email: "ANN@example.com"}, {Email: "bob@example.com"}},
		})
		if want := (&taskdb.SetupReport{Reactivated: []string{"bob@example.com"}}); err != nil || !reflect.DeepEqual(report, want) {
			t.Errorf("%+v, %v", report, err)
		}
		settings, err = db.MailSettings(ctx, compose)
		if want := (taskdb.MailSettings{Host: "mail.example.com", Password: "p", From: "A <a@example.com>"}); err != nil || settings != want {
			t.Errorf("settings are %+v, %v", settings, err)
		}
		admins, err := db.ActiveAdmins(ctx)
		if want := []taskdb.Admin{{Name: "Ann", Email: "ann@example.com"}, {Email: "bob@example.com"}}; err != nil || !slices.Equal(admins, want) {
			t.Errorf("administrators are %+v, %v", admins, err)
		}
	})
}

// What cannot be written whole is not written at all.
func TestSetupIsAllOrNothing(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	raw.SQL(t, "alter table admin add check (name <> 'Ann')")
	db := open(t, raw.ConnString)
	if _, err := db.Setup(t.Context(), helm, taskdb.Setup{Host: new("h"), Admins: []taskdb.Admin{{Name: "Ann", Email: "ann@example.com"}}}); err == nil {
		t.Error("no error")
	}
	if n := raw.SQL(t, "select count(*) from deployment_config"); n != "0" {
		t.Errorf("%s rows", n)
	}
}
