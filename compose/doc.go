package compose

import (
	"fmt"
	"strings"
)

// MatrixTable is the support matrix as the Markdown table of doc/compose.md.
func MatrixTable() string {
	var b strings.Builder
	b.WriteString("| key | support | note |\n|---|---|---|\n")
	for _, e := range Matrix() {
		note := strings.ReplaceAll(e.Note, "|", "\\|")
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", e.Path, e.Support, note)
	}
	return b.String()
}
