// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/keyhole-agent/keyhole/secret"
)

const minimal = "trust_domain: example.org\n"

func TestADocumentOverridesTheDefaults(t *testing.T) {
	config, err := ReadConfig([]byte(minimal), nil, nil)
	check(t, err)
	want := DefaultConfig()
	want.TrustDomain = "example.org"
	if !reflect.DeepEqual(config, want) {
		t.Errorf("%+v", config)
	}
	config, err = ReadConfig([]byte(minimal+"store:\n  path: /x/y\nmount: {enabled: false}\nlog:\nadministrators: [spiffe://example.org/a]\n"), nil, nil)
	check(t, err)
	want.Store.Path, want.Mount.Enabled, want.Administrators = "/x/y", false, []string{"spiffe://example.org/a"}
	if !reflect.DeepEqual(config, want) {
		t.Errorf("%+v", config)
	}
}

func TestWhatIsWrongWithADocumentIsNamedWithItsLine(t *testing.T) {
	for document, want := range map[string]string{
		minimal + "stroe: {}\n":              `line 2: there is no setting "stroe" here`,
		minimal + "store:\n  pth: x\n":       `line 3: there is no setting "pth" here`,
		minimal + minimal:                    `line 2: mapping key "trust_domain" already defined at line 1`,
		"store:\n  path: /a\n  path: /b\n":   `line 3: mapping key "path" already defined at line 2`,
		minimal + "mount:\n  enabled: 7\n":   "line 3: cannot unmarshal",
		minimal + "store: /a\n":              "line 2: cannot unmarshal",
		minimal + "administrators: a\n":      "line 2: cannot unmarshal",
		minimal + "---\n" + minimal:          "more than one document",
		minimal + "a: [\n":                   "line ",
		"\xff":                               "invalid configuration",
		"[]":                                 "line 1: cannot unmarshal",
		"":                                   "invalid setting trust_domain: it is missing; keyhole init writes a configuration",
		"stroe: {}\nx: 1\nmount: {pth: 1}\n": `line 1: there is no setting "stroe" here; line 2: there is no setting "x" here; line 3:`,
	} {
		_, err := ReadConfig([]byte(document), nil, nil)
		wants(t, err, secret.ErrInvalid, want)
		if err != nil && strings.Contains(err.Error(), "agent.") {
			t.Errorf("it speaks of Go's types: %v", err)
		}
	}
}

func TestFlagsWinOverTheEnvironmentWhichWinsOverTheDocument(t *testing.T) {
	document := minimal + "log: {level: warn, format: json}\naudit: {reads: strict}\n"
	environ := []string{"KEYHOLE_LOG_LEVEL=error", "KEYHOLE_LOG_FORMAT=auto", "KEYHOLE_LOG_FORMAT=text", "KEYHOLE_OTHER=x"}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	AddFlags(flags)
	check(t, flags.Parse([]string{"--log.level", "debug", "--development", "--administrators", "spiffe://example.org/a", "--administrators", "spiffe://example.org/b,spiffe://example.org/c"}))
	config, err := ReadConfig([]byte(document), environ, flags)
	check(t, err)
	if config.Log != (LogConfig{Level: "debug", Format: "text"}) || config.Audit.Reads != "strict" || !config.Development {
		t.Errorf("%+v", config)
	}
	if want := []string{"spiffe://example.org/a", "spiffe://example.org/b", "spiffe://example.org/c"}; !reflect.DeepEqual(config.Administrators, want) {
		t.Errorf("%q", config.Administrators)
	}
}

func TestWhatIsNeitherTrueNorFalseIsRefused(t *testing.T) {
	for _, text := range []string{"", "perhaps", "null", "2", "[true]"} {
		_, err := ReadConfig([]byte(minimal), []string{"KEYHOLE_MOUNT_ENABLED=" + text}, nil)
		wants(t, err, secret.ErrInvalid, "environment variable KEYHOLE_MOUNT_ENABLED", "is neither true nor false")
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		AddFlags(flags)
		if err := flags.Parse([]string{"--mount.enabled=" + text}); err == nil {
			t.Errorf("the flag takes %q", text)
		}
	}
}

// TestEverySettingHasAHelpTextAFlagAndAVariable, and each of the three ways to
// give it sets it and nothing else.
func TestEverySettingHasAHelpTextAFlagAndAVariable(t *testing.T) {
	other := map[string]string{
		"trust_domain": "example.com", "administrators": "spiffe://example.org/a,spiffe://example.org/b",
		"identity.workload_api": "unix:///w", "identity.broker": "unix:///b", "identity.broker_id": "spiffe://example.org/spire",
		"store.driver": "memory", "audit.reads": "strict", "log.level": "warn", "log.format": "text",
		"mount.enabled": "false", "development": "true",
	}
	variables := map[string]bool{}
	base, err := ReadConfig([]byte(minimal), nil, nil)
	check(t, err)
	for s := range settings(reflect.ValueOf(&base).Elem(), "") {
		value := other[s.name]
		if value == "" {
			value = "/other"
		}
		if s.help == "" || variables[s.variable()] || s.text() == value {
			t.Errorf("%s: help %q, variable %s, default %q", s.name, s.help, s.variable(), s.text())
		}
		variables[s.variable()] = true
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		AddFlags(flags)
		check(t, flags.Parse([]string{"--" + s.name + "=" + value}))
		if flags.Lookup(s.name).DefValue != textOf(t, DefaultConfig(), s.name) || flags.Lookup(s.name).Usage != s.help {
			t.Errorf("the flag %+v", flags.Lookup(s.name))
		}
		byFlag, err := ReadConfig([]byte(minimal), nil, flags)
		check(t, err)
		byVariable, err := ReadConfig([]byte(minimal), []string{s.variable() + "=" + value}, nil)
		check(t, err)
		want := base
		check(t, setNamed(&want, s.name, value))
		if !reflect.DeepEqual(byFlag, want) || !reflect.DeepEqual(byVariable, want) {
			t.Errorf("%s: by the flag %+v, by the variable %+v", s.name, byFlag, byVariable)
		}
		var document bytes.Buffer
		check(t, WriteConfig(&document, want))
		if !strings.Contains(document.String(), "# "+s.help+"\n") {
			t.Errorf("%s is not explained in the document", s.name)
		}
	}
}

func setNamed(config *Config, name, value string) error {
	for s := range settings(reflect.ValueOf(config).Elem(), "") {
		if s.name == name {
			return s.set(value)
		}
	}
	return nil
}

func textOf(t testing.TB, config Config, name string) string {
	t.Helper()
	for s := range settings(reflect.ValueOf(&config).Elem(), "") {
		if s.name == name {
			return s.text()
		}
	}
	t.Fatalf("no setting %s", name)
	return ""
}

func TestAWrittenConfigurationReadsAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		odd := rapid.OneOf(rapid.String(), rapid.StringMatching(`[-:#'"{}\[\]&*!|>%@, \n\t\\]{0,6}`), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 8), func(b []byte) string { return string(b) }))
		path := func(name string) string { return "/" + name + odd.Draw(t, name) }
		config := Config{
			TrustDomain: "example.org", Socket: path("socket"), AdminSocket: path("admin"),
			Identity:    IdentityConfig{WorkloadAPI: rapid.SampledFrom([]string{"", "unix:///w"}).Draw(t, "api"), Broker: "unix:///b" + odd.Draw(t, "broker")},
			Store:       StoreConfig{Driver: rapid.SampledFrom([]string{"sqlite", "memory"}).Draw(t, "driver"), Path: path("store")},
			Unlock:      UnlockConfig{Keyfile: path("key"), PasswordFile: rapid.SampledFrom([]string{"", "/p"}).Draw(t, "password")},
			Mount:       MountConfig{Enabled: rapid.Bool().Draw(t, "enabled"), Path: "/mount", Link: path("link")},
			Audit:       AuditConfig{Path: path("audit"), Reads: rapid.SampledFrom([]string{"bounded", "strict"}).Draw(t, "reads")},
			Log:         LogConfig{Level: "warn", Format: "text"},
			Development: rapid.Bool().Draw(t, "development"),
		}
		if rapid.Bool().Draw(t, "administrators") {
			config.Administrators = []string{"spiffe://example.org/a", "spiffe://example.org/-"}
		}
		if config.Check() != nil {
			t.Skip("a path led into the mount")
		}
		var document bytes.Buffer
		check(t, WriteConfig(&document, config))
		read, err := ReadConfig(document.Bytes(), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document.String())
		}
		if len(read.Administrators) == 0 {
			read.Administrators = nil
		}
		if !reflect.DeepEqual(read, config) {
			t.Fatalf("%+v became %+v by\n%s", config, read, document.String())
		}
	})
}

func TestWhatIsWrongWithASettingIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no trust domain":        {func(c *Config) { c.TrustDomain = "" }, "setting trust_domain: it is missing"},
		"no such trust domain":   {func(c *Config) { c.TrustDomain = "Example Org" }, `setting trust_domain: "Example Org": `},
		"no ID":                  {func(c *Config) { c.Administrators = []string{"root"} }, `setting administrators: "root": `},
		"a domain as ID":         {func(c *Config) { c.Administrators = []string{"spiffe://example.org"} }, "names a whole trust domain, not a workload in it"},
		"any workload as broker": {func(c *Config) { c.Identity.BrokerID = "spiffe://example.org" }, "any workload in it could be the broker"},
		"no broker ID":           {func(c *Config) { c.Identity.BrokerID = "x" }, `setting identity.broker_id: "x": `},
		"no broker address":      {func(c *Config) { c.Identity.Broker = "unix:relative" }, "setting identity.broker: "},
		"no API address":         {func(c *Config) { c.Identity.WorkloadAPI = "/run/x" }, "setting identity.workload_api: "},
		"no driver":              {func(c *Config) { c.Store.Driver = "paper" }, `setting store.driver: "paper" is none of sqlite, memory`},
		"no level":               {func(c *Config) { c.Log.Level = "INFO" }, `setting log.level: "INFO" is none of debug, info, warn, error`},
		"no format":              {func(c *Config) { c.Log.Format = "" }, "setting log.format: "},
		"no reads":               {func(c *Config) { c.Audit.Reads = "" }, "setting audit.reads: "},
		"relative":               {func(c *Config) { c.Unlock.Keyfile = "root.key" }, `setting unlock.keyfile: "root.key" is not an absolute path`},
		"empty":                  {func(c *Config) { c.Socket = "" }, `setting socket: "" is not an absolute path`},
		"in the mount":           {func(c *Config) { c.Store.Path = "/run/x/../keyhole/fs/keyhole.db" }, "lies in the mount"},
		"the mount":              {func(c *Config) { c.Mount.Link = c.Mount.Path }, `setting mount.link: "/run/keyhole/fs" lies in the mount`},
		"one socket":             {func(c *Config) { c.AdminSocket = filepath.Dir(c.Socket) + "/./agent.sock" }, "is the workload socket already"},
	} {
		config := exampleConfig()
		c.change(&config)
		err := config.Check()
		wants(t, err, secret.ErrInvalid, c.want)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: one mistake, several errors: %v", name, err)
		}
	}
	config := exampleConfig()
	config.TrustDomain, config.Log.Level, config.Socket = "", "", ""
	if err := config.Check(); strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three mistakes: %v", err)
	}
	config = exampleConfig()
	config.Mount.Link, config.TrustDomain = "", "spiffe://example.org/and/a/path"
	check(t, config.Check())
}

func exampleConfig() Config {
	config := DefaultConfig()
	config.TrustDomain = "example.org"
	config.Socket, config.AdminSocket = "/run/keyhole/agent.sock", "/run/keyhole/admin.sock"
	config.Mount.Path, config.Mount.Link = "/run/keyhole/fs", "/run/keyhole/secrets"
	return config
}

func FuzzReadConfig(f *testing.F) {
	var document bytes.Buffer
	check(f, WriteConfig(&document, exampleConfig()))
	f.Add(document.Bytes())
	f.Add([]byte(minimal + "store: &a {path: /x}\naudit: *a\n"))
	f.Fuzz(func(t *testing.T, document []byte) {
		config, err := ReadConfig(document, nil, nil)
		if err != nil {
			wants(t, err, secret.ErrInvalid)
			return
		}
		var again bytes.Buffer
		check(t, WriteConfig(&again, config))
		if read, err := ReadConfig(again.Bytes(), nil, nil); err != nil || !reflect.DeepEqual(read, config) && len(config.Administrators) > 0 {
			t.Fatalf("%+v became %+v, %v", config, read, err)
		}
	})
}
