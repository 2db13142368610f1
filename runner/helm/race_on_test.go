//go:build race

package helm

// The race detector prints a text of its own when memory runs out.
const raceDetector = true
