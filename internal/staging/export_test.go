package staging

// SetLockPause makes f what happens between two tries to get a lock.
func SetLockPause(f func()) (restore func()) {
	former := lockPause
	lockPause = f
	return func() { lockPause = former }
}
