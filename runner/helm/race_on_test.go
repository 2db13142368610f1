//go:build race

package helm

// The race detector has its own last words when memory runs out.
const raceDetector = true
