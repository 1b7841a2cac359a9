package gs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const readOnly = "https://www.googleapis.com/auth/devstorage.read_only"

// login keeps one token until it ends, or until the file that it is from has other content.
type login struct {
	file   string // "" for the default chain
	client *http.Client

	mu      sync.Mutex    // held while a token is asked for: one asks, the others wait for it
	current *oauth2.Token // guarded by mu
	text    []byte        // of the file that current is from; guarded by mu
}

func (l *login) token(ctx context.Context) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text []byte
	if l.file != "" {
		var err error
		if text, err = readCredentials(l.file); err != nil {
			return "", &model.Error{Reason: "Credentials", Text: "Google credentials", Err: err}
		}
	}
	if l.current.Valid() && bytes.Equal(text, l.text) {
		return l.current.AccessToken, nil
	}
	client, sent := *l.client, &failing{RoundTripper: l.client.Transport}
	client.Transport = sent
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &client)
	c, err := l.credentials(ctx, text)
	if err != nil {
		return "", err
	}
	t, err := c.TokenSource.Token()
	switch {
	case err != nil && sent.err != nil:
		return "", web.NoAnswer(ctx, "no answer of Google's token service", sent.err)
	case err != nil:
		return "", noToken(err)
	}
	l.current, l.text = t, text
	return t.AccessToken, nil
}

// drop forgets a token that was not accepted, unless there is another by now.
func (l *login) drop(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil && l.current.AccessToken == token {
		l.current = nil
	}
}

func (l *login) credentials(ctx context.Context, text []byte) (*google.Credentials, error) {
	if l.file != "" {
		c, err := parse(ctx, l.file, text)
		if err != nil {
			return nil, &model.Error{Reason: "Credentials", Text: "Google credentials", Err: err}
		}
		return c, nil
	}
	c, err := google.FindDefaultCredentials(ctx, readOnly)
	if err != nil {
		return nil, &model.Error{Reason: "Credentials",
			Text: "no Google credentials: name a credentials file in the config, give the node or the pod an account, or say that the buckets are anonymous"}
	}
	return c, nil
}

// failing keeps why a request had no answer: of the packages that ask for tokens some make a text of it.
type failing struct {
	http.RoundTripper
	err error
}

func (f *failing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := f.RoundTripper.RoundTrip(req)
	f.err = err
	return resp, err
}

// noToken says why there is none. The text of err repeats the answer of the token service.
func noToken(err error) error {
	text := "Google's token service gives no token for these credentials"
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return &model.Error{Reason: "Credentials", Text: text + ": check that the node or the pod has an account"}
	}
	var answer struct{ Error string }
	if json.Unmarshal(e.Body, &answer) == nil && reasonForm().MatchString(strings.ReplaceAll(answer.Error, "_", "")) {
		text += " (" + answer.Error + ")"
	}
	if e := web.ClockOff(text, e.Response); e != nil {
		return e
	}
	return &model.Error{Reason: "Credentials", Text: text + ": check that their account is there and enabled"}
}

func readCredentials(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	return text, nil
}

// parse takes the kinds of credentials that need no person and run no program.
func parse(ctx context.Context, file string, text []byte) (*google.Credentials, error) {
	var is struct {
		Type google.CredentialsType `json:"type"`
	}
	if json.Unmarshal(text, &is) == nil && (is.Type == google.ServiceAccount || is.Type == google.ExternalAccount) {
		if c, err := google.CredentialsFromJSONWithType(ctx, text, is.Type, readOnly); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("credentials file %s: want the JSON of a service account's key or of a workload identity (type service_account or external_account)", file)
}
