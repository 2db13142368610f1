package testenv

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// cached returns the path of the file or directory called name that was made for
// key, below the user's cache directory. Where no earlier process made it, it is
// made at the path that make gets. One process makes it; the others wait.
func cached(name, key string, make func(path string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache of %s: %w", name, err)
	}
	sum := sha256.Sum256([]byte(key))
	dir := filepath.Join(cache, "wrktalk-agent-test", hex.EncodeToString(sum[:8]))
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the cache of %s: %w", name, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("open the lock of %s: %w", dir, err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", dir, err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// What belongs to a process that died may still be written to.
	temp := path + "." + uniqueName()
	defer os.RemoveAll(temp) // gone already when all went well
	if err := make(temp); err != nil {
		return "", err
	}
	if err := os.Rename(temp, path); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	return path, nil
}
