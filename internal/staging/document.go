package staging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxDocument bounds every JSON document in a task's directory, in bytes. Tests
// set it lower.
var maxDocument = 64 << 20

// indentedFiles is how many files a manifest may list and still be laid out for
// people: beyond, nobody reads it, and blanks are a third of it.
const indentedFiles = 1000

// ErrTooLarge means that a document exceeds what its readers accept.
var ErrTooLarge = errors.New("the document is too large")

func encode(v any, indent bool) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if indent {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if buf.Len() > maxDocument {
		return nil, fmt.Errorf("%w: %d bytes of at most %d", ErrTooLarge, buf.Len(), maxDocument)
	}
	return buf.Bytes(), nil
}

func readJSON(root *os.Root, name string, v any) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := json.NewDecoder(io.LimitReader(f, int64(maxDocument)))
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	return nil
}
