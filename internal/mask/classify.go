package mask

import (
	"math"
	"net/url"
	"regexp"
	"strings"
)

// where says where in a text a value is hidden.
type where int

const (
	// everywhere: long or odd enough not to be met by chance.
	everywhere where = iota
	// asToken: like a word, hidden where it stands alone.
	asToken
	// behindName: a common word, a short text or a small number, hidden only
	// behind a name that promises a secret, as in password=1234.
	behindName
)

const (
	minShort   = 4 // bytes: shorter ones are hidden behind names only
	minToken   = 8 // bytes: shorter ones are hidden as tokens only
	minOther   = 8 // bytes of a value whose name does not look secret
	minDigits  = 6 // of a number that is hidden as a token
	minEncoded = 6 // bytes of a value that is looked for in base64 and hex

	// maxFound is how many spellings there are before further values are looked for
	// as they are only: an env may hold hundreds of thousands.
	maxFound = 100_000
)

// classifier collects the spellings of secrets.
type classifier struct {
	found map[string]entry
	words map[string]bool // common in the release, in lower case
}

// learn adds what must not show of the value called name.
func (c classifier) learn(name, value string) {
	value = strings.TrimSpace(value)
	if value == "" || isBool(value) || namesKey(name, value) {
		return
	}
	if p := password(value); p != "" {
		c.add(name, p, c.whereOf(p))
	}
	if strings.Contains(value, "$") {
		for _, hash := range hashes.FindAllString(value, -1) {
			c.add(name, hash, everywhere)
		}
	}
	switch {
	case LooksSecret(name):
		c.add(name, value, c.whereOf(value))
	case looksRandom(value):
		c.add(name, value, everywhere)
	case len(value) < minOther || harmless(name, value) || c.common(value):
		return
	case onlyWord.MatchString(value):
		c.add(name, value, asToken)
	default:
		c.add(name, value, everywhere)
	}
	if lines := strings.Split(value, "\n"); len(lines) > 1 {
		for _, l := range lines {
			if l = strings.TrimSpace(l); len(l) >= minLine(name) && !strings.HasPrefix(l, "-----") && c.whereOf(l) != behindName {
				c.add(name, l, c.whereOf(l))
			}
		}
	}
}

// minLine is the least length of one line of a value that is hidden by itself, in
// bytes.
func minLine(name string) int {
	if LooksSecret(name) {
		return minShort
	}
	return minOther
}

// add adds text, in all its spellings, under name.
func (c classifier) add(name, text string, at where) {
	c.put(entry{text, name, at})
	if at == behindName {
		return
	}
	for _, form := range forms(text) {
		c.put(entry{form, name, at})
	}
	if len(text) >= minEncoded && len(c.found) < maxFound {
		for _, form := range encoded(text) {
			c.put(entry{form, name, everywhere})
		}
	}
}

func (c classifier) put(e entry) {
	if old, ok := c.found[e.text]; ok {
		e.where = min(e.where, old.where)
		if old.name < e.name {
			e.name = old.name
		}
	}
	c.found[e.text] = e
}

var (
	onlyWord   = regexp.MustCompile(`^[A-Za-z]+$`)
	onlyDigits = regexp.MustCompile(`^[0-9]+$`)
)

// whereOf says where a secret value is hidden.
func (c classifier) whereOf(value string) where {
	switch {
	case len(value) < minShort || c.common(value) || onlyDigits.MatchString(value) && len(value) < minDigits:
		return behindName
	case len(value) < minToken || onlyWord.MatchString(value) || onlyDigits.MatchString(value):
		return asToken
	default:
		return everywhere
	}
}

func (c classifier) common(value string) bool {
	value = strings.ToLower(value)
	return commonWords[value] || c.words[value]
}

// commonWords are values of secrets that every log is full of.
var commonWords = func() map[string]bool {
	words := map[string]bool{}
	for w := range strings.FieldsSeq(`
		admin administrator root user users username guest test tests testing demo example default
		password passwd passphrase secret secrets token key keys changeme change-me letmein none null nil empty
		postgres postgresql pgsql mysql mariadb mongo mongodb redis rabbitmq rabbit guest kafka minio minioadmin
		elastic elasticsearch kibana grafana prometheus keycloak nginx apache traefik haproxy caddy
		localhost local host hosts server client service services database data backend frontend
		web app apps api worker job jobs main master primary replica public private
		production prod staging stage development dev debug info warn warning error errors fatal trace
		true false yes no on off enabled disabled enable disable auto always never
		container containers image images volume volumes network networks docker compose helm kubernetes
		release releases deploy deployment started starting running stopped failed healthy unhealthy
		http https tcp udp tls ssl smtp ssh file files path name latest stable version`) {
		words[w] = true
	}
	return words
}()

// secretWords promise a secret wherever they stand in a name, wholeWords where
// they stand alone. harmlessWords hold one by chance.
var (
	secretWords = []string{
		"PASS", "PWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH", "DSN",
		"PRIVATE", "SALT", "CERT", "SIGNATURE", "WEBHOOK", "COOKIE", "SESSION",
	}
	wholeWords    = regexp.MustCompile(`(^|[^A-Z])(PIN|OTP|PSK|PW|CREDS?)([^A-Z]|$)`)
	harmlessWords = strings.NewReplacer(
		"KEYCLOAK", "", "KEYBOARD", "", "KEYWORD", "", "KEYSPACE", "", "MONKEY", "", "HOTKEY", "",
		"COMPASS", "", "BYPASS", "", "PASSENGER", "", "PASSIVE", "", "PASSTHROUGH", "", "AUTHORITATIVE", "",
	)
	// harmlessEnd is how names end that tell of a secret what is none itself.
	harmlessEnd = regexp.MustCompile(`(?i)(_|-|\.|[a-z0-9])(FILE|PATH|DIR|NAME|REF|NAMESPACE|SELECTOR|HOST|HOSTNAME|PORT|USER|USERNAME|ENABLED|TYPE|METHOD|MODE|TTL|TIMEOUT|EXPIRY|EXPIRES|LENGTH|ALGORITHM|ISSUER|AUDIENCE|REALM)$`)
)

// LooksSecret reports whether the name of a variable or setting promises a secret.
func LooksSecret(name string) bool {
	if harmlessEnd.MatchString(name) {
		return false
	}
	name = harmlessWords.Replace(strings.ToUpper(name))
	for _, w := range secretWords {
		if strings.Contains(name, w) {
			return true
		}
	}
	return wholeWords.MatchString(name)
}

var (
	endsInKey = regexp.MustCompile(`(?i)keys?$|keys?\.[^.]*$`)
	words     = regexp.MustCompile(`^[a-z]+([-_.][a-z]+)*$`)
)

// namesKey reports whether the value is no secret, but the name under which one is
// kept elsewhere, as in passwordKey: postgres-password.
func namesKey(name, value string) bool {
	return endsInKey.MatchString(name) && words.MatchString(value) && LooksSecret(value)
}

var (
	harmlessName  = regexp.MustCompile(`(?i)(^|_)(IMAGE|TAG|VERSION)(_|$)|^COMPOSE_`)
	harmlessValue = regexp.MustCompile(`^[+-]?[0-9][0-9.,:]*[A-Za-z%]{0,3}$|^v?[0-9]+(\.[0-9A-Za-z]+)+([-+][0-9A-Za-z.-]+)?$`)
	pathName      = regexp.MustCompile(`(?i)(FILE|PATH|DIR)$`)
	pathValue     = regexp.MustCompile(`^\.{0,2}(/[A-Za-z0-9_.-]{1,20})+/?$`)
)

// harmless reports whether a value under a name that does not look secret is
// plainly fit to show: a number, a version, an image, a path where one is due.
func harmless(name, value string) bool {
	return harmlessName.MatchString(name) || harmlessValue.MatchString(value) ||
		pathName.MatchString(name) && pathValue.MatchString(value)
}

func isBool(value string) bool {
	switch strings.ToLower(value) {
	case "true", "false", "yes", "no", "on", "off", "none", "null":
		return true
	}
	return false
}

// shapes are those of secrets that say themselves what they are: keys of well-known
// services, signed tokens, password hashes, private keys.
var shapes = regexp.MustCompile(`^(sk|rk|pk)_(live|test)_|^sk-[A-Za-z0-9]|^gh[pousr]_|^github_pat_|^glpat-|^xox[abeprs]-|^A[KS]IA[0-9A-Z]{16}$|^AIza|^SG\.[A-Za-z0-9_-]{16}|^npm_|^dop_v1_|^hv[sb]\.|^eyJ[A-Za-z0-9_-]+\.|\$2[aby]\$|\$apr1\$|\$argon2|\$6\$|PRIVATE KEY-----`)

var (
	oneToken = regexp.MustCompile(`^[A-Za-z0-9+/=_-]+$`)
	hexText  = regexp.MustCompile(`^[0-9a-fA-F]+$`)
)

// ShapedSecret reports whether value looks like a secret by itself, whatever it is
// called: it has a well-known form, it is an address or a list of settings with a
// password in it, or it looks random.
func ShapedSecret(value string) bool {
	return looksRandom(value) || password(value) != ""
}

// looksRandom reports whether all of value looks like a secret.
func looksRandom(value string) bool {
	value = strings.TrimSpace(value)
	if shapes.MatchString(value) && !strings.ContainsAny(value, " \t") || strings.Contains(value, "PRIVATE KEY-----") {
		return true
	}
	const least, leastBits = 20, 3.5
	if len(value) < least || !oneToken.MatchString(value) || hexText.MatchString(value) || strings.Contains(value, "/") {
		return false // digests and ids are hexadecimal as well
	}
	var upper, lower, digit bool
	for _, r := range value {
		upper = upper || r >= 'A' && r <= 'Z'
		lower = lower || r >= 'a' && r <= 'z'
		digit = digit || r >= '0' && r <= '9'
	}
	return upper && lower && digit && bits(value) >= leastBits
}

// bits is the entropy of one byte of s.
func bits(s string) float64 {
	var counts [256]int
	for i := range len(s) {
		counts[s[i]]++
	}
	var sum float64
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(s))
			sum -= p * math.Log2(p)
		}
	}
	return sum
}

// hashes are those of passwords, as user:hash lists hold them.
var hashes = regexp.MustCompile(`\$(?:2[aby]|apr1|argon2[a-z]*|[156])\$[^\s,:"']+`)

var passwordSetting = regexp.MustCompile(`(?i)(?:^|[;&?\s])(?:password|passwd|pwd|accountkey|sharedaccesskey|secret|token)=([^;&\s]+)`)

// password returns the password within an address or a list of settings, as in
// postgres://user:password@host or Server=db;Password=...; "" for none.
func password(value string) string {
	if !strings.ContainsAny(value, "=@") {
		return ""
	}
	if m := userinfo.FindString(value); m != "" {
		if u, err := url.Parse(value); err == nil && u.User != nil {
			if p, ok := u.User.Password(); ok {
				return p
			}
		}
		_, rest, _ := strings.Cut(m, "://")
		_, p, _ := strings.Cut(strings.TrimSuffix(rest, "@"), ":")
		return p
	}
	if m := passwordSetting.FindStringSubmatch(value); m != nil {
		return m[1]
	}
	return ""
}
