package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a flag for an amount of memory or disk in bytes: a number of MiB, as E2B's tools write it, or with a suffix M, G or T.
type size int64

// maxSize is more than any disk that can be asked for, and keeps sums from overflowing.
const maxSize = 1 << 50

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = size(n)
	return nil
}

// String implements pflag.Value.
func (s *size) String() string { return strconv.FormatInt(int64(*s)>>20, 10) }

// Type implements pflag.Value.
func (s *size) Type() string { return "size" }

func parseSize(text string) (int64, error) {
	number := strings.ToUpper(strings.TrimSpace(text))
	number = strings.TrimSuffix(strings.TrimSuffix(number, "B"), "I")
	unit := int64(1 << 20)
	if number != "" {
		switch number[len(number)-1] {
		case 'M':
			number = number[:len(number)-1]
		case 'G':
			unit, number = 1<<30, number[:len(number)-1]
		case 'T':
			unit, number = 1<<40, number[:len(number)-1]
		}
	}
	// ParseFloat also reads 0x1p4, 1e9, inf and 1_000, none of which anybody means here.
	if strings.Trim(number, "0123456789.") != "" && !strings.HasPrefix(number, "-") {
		return 0, fmt.Errorf("%q is not a size: write MiB as a number (512) or with a suffix (512M, 2G)", text)
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: write MiB as a number (512) or with a suffix (512M, 2G)", text)
	}
	bytes := value * float64(unit)
	switch {
	case bytes <= 0:
		return 0, fmt.Errorf("%q is not a size: it must be more than zero", text)
	case bytes > maxSize:
		return 0, fmt.Errorf("%q is too much: nothing may be larger than 1024T", text)
	case math.Mod(bytes, 1<<20) != 0:
		return 0, fmt.Errorf("%q is not a whole number of MiB", text)
	}
	return int64(bytes), nil
}

// formatBytes writes a byte count for people.
func formatBytes(n int64) string {
	v := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 || unit == "TiB" {
			if unit == "B" || v >= 100 {
				return fmt.Sprintf("%.0f %s", v, unit)
			}
			return fmt.Sprintf("%.1f %s", v, unit)
		}
		v /= 1024
	}
	return ""
}
