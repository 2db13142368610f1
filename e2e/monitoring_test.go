package e2e

import "regexp"

var servedLine = regexp.MustCompile(`"msg":"health is served".*"address":"([^"]+)"`)

// address returns where the agent serves its health and metrics: the port it
// was given is in its log.
func (w *world) address() string {
	w.t.Helper()
	var found []string
	w.eventually("the agent serves its health", func() bool {
		found = servedLine.FindStringSubmatch(w.logged())
		return found != nil
	})
	return found[1]
}
