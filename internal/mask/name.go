package mask

// LooksSecret reports whether the name of a variable or setting promises a
// secret.
func LooksSecret(name string) bool { return looksSecret(name) }
