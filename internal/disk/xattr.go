package disk

import "strings"

// The xattr area holds runs of entries in the encoding of EROFS
// (fs/erofs/erofs_fs.h, struct erofs_xattr_entry), so that both views use the
// same bytes: `name_len u8, name_index u8, value_size u16, name, value`, padded
// with zeros to 4 bytes. An inode's run is its whole set, sorted by full name;
// equal sets are one run.

// xattrPrefixes are the name indexes of EROFS. An index with a full name has
// an empty suffix.
var xattrPrefixes = []struct {
	index  uint8
	prefix string
	full   bool
}{
	{1, "user.", false},
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{4, "trusted.", false},
	{6, "security.", false},
}

// Xattr is one extended attribute with its full name.
type Xattr struct{ Name, Value string }

// SplitXattr returns name index and suffix, or ok = false for a namespace that
// the format cannot hold.
func SplitXattr(name string) (index uint8, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		if p.full {
			if name == p.prefix {
				return p.index, "", true
			}
			continue
		}
		if s, found := strings.CutPrefix(name, p.prefix); found && s != "" && len(s) <= 255 && strings.IndexByte(s, 0) < 0 {
			return p.index, s, true
		}
	}
	return 0, "", false
}

// AppendXattr appends the entry for x, padded to 4 bytes. The caller has
// checked name and value size.
func AppendXattr(b []byte, x Xattr) []byte {
	index, suffix, _ := SplitXattr(x.Name)
	b = append(b, uint8(len(suffix)), index, byte(len(x.Value)), byte(len(x.Value)>>8))
	b = append(b, suffix...)
	b = append(b, x.Value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// DecodeXattrs reads a whole run.
func DecodeXattrs(b []byte) ([]Xattr, error) {
	var out []Xattr
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, Corruptf("xattr entry: %d bytes left, want at least 4", len(b))
		}
		nameLen, index, valueLen := int(b[0]), b[1], int(le.Uint16(b[2:]))
		n := 4 + nameLen + valueLen
		if AlignUp(n, 4) > len(b) {
			return nil, Corruptf("xattr entry: %d bytes, only %d left", AlignUp(n, 4), len(b))
		}
		name, ok := "", false
		for _, p := range xattrPrefixes {
			if p.index == index && p.full == (nameLen == 0) {
				name, ok = p.prefix+string(b[4:4+nameLen]), true
			}
		}
		if !ok || strings.IndexByte(name, 0) >= 0 {
			return nil, Corruptf("xattr entry: name index %d with a suffix of %d bytes", index, nameLen)
		}
		out = append(out, Xattr{name, string(b[4+nameLen : n])})
		b = b[AlignUp(n, 4):]
	}
	for i := 1; i < len(out); i++ {
		if out[i-1].Name >= out[i].Name {
			return nil, Corruptf("xattr entries: %q stands before %q", out[i-1].Name, out[i].Name)
		}
	}
	return out, nil
}
