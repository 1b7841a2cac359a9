package az

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// audience is whom tokens are for, in each of Azure's clouds.
const audience = "https://storage.azure.com/"

const bearer = "Bearer "

// credentials are those of one account: a key, or a signature that somebody made with it.
type credentials struct {
	account string
	key     []byte
	sas     url.Values
}

// readCredentials takes a connection string, as Azure's portal shows it. Its endpoint serves to name the account alone.
// The errors show nothing of it.
func readCredentials(file string) (credentials, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return credentials{}, fmt.Errorf("credentials file: %w", err)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ";") {
		name, value, _ := strings.Cut(part, "=")
		parts[name] = value
	}
	c := credentials{account: parts["AccountName"]}
	if u, err := url.Parse(parts["BlobEndpoint"]); c.account == "" && err == nil {
		c.account, _, _ = strings.Cut(u.Hostname(), ".")
	}
	c.key, err = base64.StdEncoding.DecodeString(parts["AccountKey"])
	sas, sasErr := url.ParseQuery(strings.TrimPrefix(parts["SharedAccessSignature"], "?"))
	c.sas = sas
	if err != nil || sasErr != nil || !accountForm().MatchString(c.account) || len(c.key) > 0 == (c.sas.Get("sig") != "") {
		return credentials{}, fmt.Errorf("credentials file %s: want one connection string with AccountName or BlobEndpoint, "+
			"and AccountKey or SharedAccessSignature, joined by \";\"", file)
	}
	return c, nil
}

// authorize adds what shows that req may be asked.
func (s *Source) authorize(req *http.Request, at place) error {
	switch {
	case s.anonymous:
		return nil
	case s.identity != nil:
		token, err := s.identity.token(req.Context())
		if err == nil {
			req.Header.Set("Authorization", bearer+token)
		}
		return err
	}
	c, err := readCredentials(s.file)
	if err != nil {
		return &model.Error{Reason: "Credentials", Text: "Azure credentials", Err: err}
	}
	if c.account != at.account { // another account's owner could see the signature
		return &model.Error{Reason: "Credentials", Final: true,
			Text: fmt.Sprintf("%s: the credentials file is for account %s: name a source there, or the credentials of %s", at.ref, c.account, at.account)}
	}
	if len(c.key) == 0 {
		query := req.URL.Query()
		maps.Copy(query, c.sas)
		req.URL.RawQuery = query.Encode()
		return nil
	}
	req.Header.Set("Authorization", "SharedKey "+c.account+":"+c.sign(req))
	return nil
}

// sign is the signature of "Shared Key" in "Authorize with Shared Key" of the REST reference: a GET without a body.
func (c credentials) sign(req *http.Request) string {
	h := req.Header
	lines := []string{req.Method, "", "", "", "", "", "", h.Get("If-Modified-Since"), h.Get("If-Match"), h.Get("If-None-Match"),
		h.Get("If-Unmodified-Since"), h.Get("Range")}
	var ours []string
	for name := range h {
		if name := strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			ours = append(ours, name+":"+h.Get(name))
		}
	}
	slices.Sort(ours)
	lines = append(lines, ours...)
	resource := "/" + c.account + req.URL.EscapedPath()
	query := req.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(query)) {
		resource += "\n" + strings.ToLower(name) + ":" + strings.Join(query[name], ",")
	}
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(strings.Join(append(lines, resource), "\n")))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// identity is who the pod or the node is to Azure: it keeps one token until that ends.
type identity struct {
	client *http.Client // to Entra
	local  *http.Client // to the node's metadata service

	mu      sync.Mutex    // held while a token is asked for: one asks, the others wait for it
	current *oauth2.Token // guarded by mu
}

func (i *identity) token(ctx context.Context) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.current.Valid() {
		return i.current.AccessToken, nil
	}
	ask := i.managed
	if os.Getenv("AZURE_FEDERATED_TOKEN_FILE") != "" {
		ask = i.workload
	}
	t, err := ask(ctx)
	if err != nil {
		return "", err
	}
	i.current = t
	return t.AccessToken, nil
}

// drop forgets a token that was not accepted, unless there is another by now.
func (i *identity) drop(token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.current != nil && i.current.AccessToken == token {
		i.current = nil
	}
}

// workload exchanges the service account's token, as the webhook of Azure Workload Identity mounts it.
func (i *identity) workload(ctx context.Context) (*oauth2.Token, error) {
	client, tenant := os.Getenv("AZURE_CLIENT_ID"), os.Getenv("AZURE_TENANT_ID")
	authority := cmp.Or(os.Getenv("AZURE_AUTHORITY_HOST"), "https://login.microsoftonline.com/")
	u, err := url.Parse(authority)
	if client == "" || tenant == "" || err != nil || u.Scheme != "https" && !(u.Scheme == "http" && web.Loopback(u.Hostname())) {
		return nil, &model.Error{Reason: "Credentials",
			Text: "Azure workload identity: want AZURE_CLIENT_ID, AZURE_TENANT_ID and an https:// AZURE_AUTHORITY_HOST in the environment: annotate the service account"}
	}
	assertion, err := web.Token(os.Getenv("AZURE_FEDERATED_TOKEN_FILE"))
	if err != nil {
		return nil, &model.Error{Reason: "Credentials", Text: "Azure workload identity", Err: err}
	}
	c := clientcredentials.Config{
		ClientID: client, TokenURL: u.JoinPath(tenant, "oauth2/v2.0/token").String(), Scopes: []string{audience + ".default"},
		AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}},
	}
	t, err := c.Token(context.WithValue(ctx, oauth2.HTTPClient, i.client))
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok { // its text repeats the answer
		return nil, &model.Error{Reason: "Credentials", Text: fmt.Sprintf("Entra gives no token for workload identity %s%s: check the client, the tenant "+
			"and the federated credential's subject", client, codeOf(e.ErrorCode))}
	}
	return t, err
}

// codeOf is an OAuth error code for people.
func codeOf(code string) string {
	if codeForm().MatchString(strings.ReplaceAll(code, "_", "")) {
		return " (" + code + ")"
	}
	return ""
}

// managed asks the node's metadata service, which answers on nodes of Azure alone.
func (i *identity) managed(ctx context.Context) (*oauth2.Token, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {audience}}
	if client := os.Getenv("AZURE_CLIENT_ID"); client != "" {
		query.Set("client_id", client)
	}
	none := func(why string) error {
		return &model.Error{Reason: "Credentials", Text: "no Azure identity: " + why + ": name a credentials file in the config, " +
			"give the pod a workload identity or the node a managed one, or say that the containers are anonymous"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Metadata", "true")
	resp, err := i.local.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, none("this node has no metadata service")
	}
	defer resp.Body.Close()
	var t struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   string `json:"expires_in"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, none("its metadata service answers " + web.StatusText(resp))
	}
	seconds, err := 0, json.Unmarshal(text, &t)
	if err == nil {
		seconds, err = strconv.Atoi(t.ExpiresIn)
	}
	if err != nil || t.AccessToken == "" {
		return nil, none("its metadata service does not answer with a token")
	}
	return &oauth2.Token{AccessToken: t.AccessToken, Expiry: time.Now().Add(time.Duration(seconds) * time.Second)}, nil
}
