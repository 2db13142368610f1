// Package e2e holds the tests of the whole: the built programs, configured by
// the reference's environment variables, between a real PostgreSQL with the
// unmodified v4.2 tables, a real Docker Engine and a real mail server.
//
// world_test.go builds and starts all of it; each other file tests one promise.
package e2e
