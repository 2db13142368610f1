package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// agentRole is whom the agent logs in as: a role that has the rights of
// docs/database.md, and no others.
const agentRole = "wrktalk_agent"

// grants returns the statements of docs/database.md that give the agent its rights.
func grants(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("../docs/database.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sql, found := strings.Cut(string(data), "<!-- grants: agent -->\n```sql\n")
	sql, _, ended := strings.Cut(sql, "```\n<!-- end -->")
	if !found || !ended {
		t.Fatal("docs/database.md holds no grants")
	}
	return sql
}

// createAgentRole makes the role on a server, with the password of all tests.
func createAgentRole(sql func(database, statements string) (string, error)) error {
	_, err := sql("postgres", fmt.Sprintf("create role %s login password '%s'", agentRole, strings.ReplaceAll(dbPassword, "'", "''")))
	return err
}
