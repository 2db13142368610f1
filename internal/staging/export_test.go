package staging

import "time"

// SetLockPause makes f what happens between two tries to get a lock.
func SetLockPause(f func()) (restore func()) {
	former := lockPause
	lockPause = f
	return func() { lockPause = former }
}

// SetMaxDocument makes n the size of the largest document.
func SetMaxDocument(n int) (restore func()) {
	former := maxDocument
	maxDocument = n
	return func() { maxDocument = former }
}

// The limits that tests run into.
const (
	MaxQuarantine = maxQuarantine
	IndentedFiles = indentedFiles
)

// SetSettle makes f what happens before a directory that was removed is made again.
func SetSettle(f func()) (restore func()) {
	former := settle
	settle = f
	return func() { settle = former }
}

// SetRelock makes d how often an AgentLock looks for another directory.
func SetRelock(d time.Duration) (restore func()) {
	former := relock
	relock = d
	return func() { relock = former }
}
