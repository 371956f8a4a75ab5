// Package table prints rows under headings, columns as wide as their widest cell.
package table

import (
	"io"
	"strings"
	"text/tabwriter"

	"github.com/gantryd/gantry/cli/printable"
)

// Table collects rows. The zero value is not usable; call New.
type Table struct {
	head []string
	rows [][]string
}

// New makes a table with the headings of its columns.
func New(head ...string) *Table { return &Table{head: head} }

// Row adds one row. An empty cell is shown as it is; control characters are escaped.
func (t *Table) Row(cells ...string) {
	for i, c := range cells {
		cells[i] = printable.Line(c)
	}
	t.rows = append(t.rows, cells)
}

// Write prints the headings and all rows.
func (t *Table) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.head}, t.rows...) {
		if _, err := io.WriteString(tw, strings.Join(row, "\t")+"\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// String gives what Write prints.
func (t *Table) String() string {
	var b strings.Builder
	_ = t.Write(&b)
	return b.String()
}
