package agent

import (
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/bash\n" +
		"# a comment\nbroken line\n:x:5:5:no name:/:/bin/sh\nbad:x:minus:0::/:\n" +
		"alice:x:1000:100:Alice,,,:/home/alice:/bin/zsh\r\n" +
		"bare:x:1001:1001:::\n" +
		"second:x:1000:7:same number as alice:/home/second:/bin/sh\n" +
		"2000:x:3000:3000:a name that is a number:/home/n:/bin/sh"
	testGroup = "root:x:0:\nusers:x:100:\nwheel:x:10:root,alice\naudio:x:29:alice\nbroken\n+bad:x:z:alice\n"
)

func TestFindAccount(t *testing.T) {
	for spec, want := range map[string]account{
		"":            {Name: "root", Home: "/root", Shell: "/bin/bash", Groups: []uint32{10}},
		"root":        {Name: "root", Home: "/root", Shell: "/bin/bash", Groups: []uint32{10}},
		"alice":       {Name: "alice", UID: 1000, GID: 100, Home: "/home/alice", Shell: "/bin/zsh", Groups: []uint32{10, 29}},
		"1000":        {Name: "alice", UID: 1000, GID: 100, Home: "/home/alice", Shell: "/bin/zsh", Groups: []uint32{10, 29}},
		"bare":        {Name: "bare", UID: 1001, GID: 1001, Home: "/", Shell: "/bin/sh"},
		"2000":        {Name: "2000", UID: 3000, GID: 3000, Home: "/home/n", Shell: "/bin/sh"},
		"4294967294":  {Name: "4294967294", UID: 4294967294, Home: "/", Shell: "/bin/sh"},
		"alice:wheel": {Name: "alice", UID: 1000, GID: 10, Home: "/home/alice", Shell: "/bin/zsh"},
		"55:66":       {Name: "55", UID: 55, GID: 66, Home: "/", Shell: "/bin/sh"},
		":audio":      {Name: "root", GID: 29, Home: "/root", Shell: "/bin/bash"},
	} {
		got, err := findAccount([]byte(testPasswd), []byte(testGroup), spec)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"nobody", "4294967295", "-1", "+1", "alice:nogroup", "a/b", "x\x00", strings.Repeat("x", 300), "bad"} {
		if got, err := findAccount([]byte(testPasswd), []byte(testGroup), spec); !errors.Is(err, errNoUser) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
}

func TestAccountsWithoutFiles(t *testing.T) {
	a := accounts{root: t.TempDir()}
	if acc, err := a.lookup(""); err != nil || acc.UID != 0 || acc.Home != "/root" || acc.Shell != "/bin/sh" {
		t.Errorf("root: %+v, %v", acc, err)
	}
	if acc, err := a.lookup("7:8"); err != nil || acc.UID != 7 || acc.GID != 8 {
		t.Errorf("7:8: %+v, %v", acc, err)
	}
	if _, err := a.lookup("alice"); !errors.Is(err, errNoUser) {
		t.Errorf("alice: %v", err)
	}
	if n := a.names(); n.user(0) != "root" || n.group(5) != "5" {
		t.Errorf("names: %q, %q", n.user(0), n.group(5))
	}
}

func TestRequestUser(t *testing.T) {
	basic := func(user, password string) http.Header {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, password)
		return r.Header
	}
	for _, tc := range []struct {
		header http.Header
		query  string
		want   string
	}{
		{http.Header{}, "", ""},
		{basic("alice", ""), "", "alice"},
		{basic("alice", "wheel"), "", "alice:wheel"},
		{basic("alice", ""), "bob", "bob"},
		{http.Header{"Authorization": {"Bearer x"}}, "", ""},
	} {
		if got := requestUser(tc.header, tc.query); got != tc.want {
			t.Errorf("%v, %q: %q, want %q", tc.header, tc.query, got, tc.want)
		}
	}
}

func FuzzFindAccount(f *testing.F) {
	f.Add([]byte(testPasswd), []byte(testGroup), "alice")
	f.Add([]byte("a:b:c\n\n::::::\n"), []byte(":::\n"), "0:0")
	f.Fuzz(func(t *testing.T, passwd, group []byte, spec string) {
		acc, err := findAccount(passwd, group, spec)
		if err != nil {
			if !errors.Is(err, errNoUser) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if acc.Name == "" || acc.Home == "" || acc.Shell == "" || acc.UID == 1<<32-1 || acc.GID == 1<<32-1 || len(acc.Groups) > maxGroups {
			t.Fatalf("%q gave %+v", spec, acc)
		}
	})
}
