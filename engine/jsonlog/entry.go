package jsonlog

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// Entry is one line of a log, or a part of a line longer than 16 KiB.
type Entry struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Line   []byte // ends with a newline unless the line goes on or the container ended within it
}

// split cuts data into lines with their newline; parts of at most maxLine. The unfinished rest is kept unless it is the
// last. It returns the lines and the number of bytes in them.
func split(data []byte, last bool) (lines [][]byte, used int) {
	for used < len(data) {
		rest := data[used:]
		n := bytes.IndexByte(rest[:min(len(rest), maxLine)], '\n') + 1
		switch {
		case n > 0:
		case len(rest) >= maxLine:
			n = maxLine
		case last:
			n = len(rest)
		default:
			return lines, used
		}
		lines = append(lines, rest[:n])
		used += n
	}
	return lines, used
}

// appendEntry appends one line of a json-file log.
func appendEntry(out []byte, stream string, line []byte, at time.Time) []byte {
	out = append(out, `{"log":`...)
	out = appendString(out, line)
	out = append(out, `,"stream":"`...)
	out = append(out, stream...)
	out = append(out, `","time":"`...)
	out = at.UTC().AppendFormat(out, time.RFC3339Nano)
	return append(out, "\"}\n"...)
}

// appendString appends s as a JSON string. Bytes that are not UTF-8 become the replacement character, as in Docker.
func appendString(out, s []byte) []byte {
	out = append(out, '"')
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		switch {
		case r == '\n':
			out = append(out, `\n`...)
		case r == '"' || r == '\\':
			out = append(out, '\\', byte(r))
		case r < 0x20 || r == 0x2028 || r == 0x2029:
			out = append(out, `\u`...)
			hex := strconv.FormatInt(int64(r), 16)
			out = append(out, "0000"[len(hex):]...)
			out = append(out, hex...)
		case r == utf8.RuneError:
			out = append(out, "\uFFFD"...)
		default:
			out = append(out, s[:n]...)
		}
		s = s[n:]
	}
	return append(out, '"')
}

// parseEntry reads one line of a json-file log.
func parseEntry(line []byte) (Entry, error) {
	var raw struct {
		Log, Stream string
		Time        time.Time
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return Entry{}, err
	}
	return Entry{Stream: raw.Stream, Time: raw.Time, Line: []byte(raw.Log)}, nil
}
