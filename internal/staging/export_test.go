package staging

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
