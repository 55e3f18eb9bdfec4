// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestCanonicalJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, want string }{
		{"sorted", `{"b":1,"a":"test","c":{"d":"e"}}`, `{"a":"test","b":1,"c":{"d":"e"}}`},
		{"literals", ` [ null , true , false , [ ] , { } ] `, `[null,true,false,[],{}]`},
		{"integers", `[0,-0,-7,9007199254740991,-9007199254740991]`, `[0,0,-7,9007199254740991,-9007199254740991]`},
		{"short escapes", `"\u0008\u0009\u000a\u000c\u000d\u0022\u005c\/"`, `"\b\t\n\f\r\"\\/"`},
		{"control characters", `"\u0000\u001f\u007f"`, "\"\\u0000\\u001f\x7f\""},
		{"no other escapes", `"\u2028\u2029<>&\u00e9\u20ac"`, "\"\u2028\u2029<>&é€\""},
		{"surrogate pair", `"\ud83d\ude02"`, "\"😂\""},
		{"a backslash before u", `"\\ud800"`, `"\\ud800"`},
		// The vector of RFC 8785 section 3.2.3: names sort by UTF-16 code units.
		{
			"code units",
			`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}",
		},
	} {
		got, err := CanonicalJSON(json.RawMessage(c.in))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestCanonicalJSONDigest(t *testing.T) {
	t.Parallel()
	b, err := CanonicalJSON(map[string]any{"b": 1, "a": "test", "c": map[string]string{"d": "e"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
	if sum := sha512.Sum384(b); hex.EncodeToString(sum[:]) != want {
		t.Errorf("digest of %s is %x", b, sum)
	}
}

func TestCanonicalJSONRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]any{
		"fraction":        1.5,
		"exponent":        json.RawMessage("1e3"),
		"large":           json.RawMessage("9007199254740992"),
		"very large":      json.RawMessage("99999999999999999999999"),
		"same name twice": json.RawMessage(`{"a":1,"b":2,"a":3}`),
		"lone high":       json.RawMessage(`"\ud800"`),
		"lone low":        json.RawMessage(`"\udc00x"`),
		"two high":        json.RawMessage(`"\ud800\ud800"`),
		"not UTF-8":       json.RawMessage("\"\xff\""),
		"not JSON":        json.RawMessage("{"),
		"two values":      json.RawMessage("1 2"),
		"channel":         make(chan int),
		"deep":            json.RawMessage(strings.Repeat("[", 100) + strings.Repeat("]", 100)),
	} {
		if got, err := CanonicalJSON(in); err == nil {
			t.Errorf("%s: got %s, want error", name, got)
		}
	}
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":[true,null]}`, `"\ud83d\ude02"`, `{"\u20ac":-0}`, "[[[]]]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := CanonicalJSON(json.RawMessage(in))
		if err != nil {
			return
		}
		twice, err := CanonicalJSON(json.RawMessage(once))
		if err != nil || string(twice) != string(once) {
			t.Fatalf("%q becomes %q, then %q, %v", in, once, twice, err)
		}
	})
}
