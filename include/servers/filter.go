// Part of package cmd of the MinIO that build-minio builds: what every request has to pass before its handler sees it.
// It uses MinIO's own functions, so that no request is read in one way here and in another there. See docs/store.md.
package cmd

import (
	"errors"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	xhttp "github.com/minio/minio/internal/http"
	"github.com/minio/minio/internal/logger"
	"github.com/minio/mux"
)

// Keys that are created once and then stay: patterns of package path, BUCKET/KEY, separated by blanks.
var writeOnceKeys = readWriteOnceKeys()

func readWriteOnceKeys() []string {
	patterns, given := os.LookupEnv("WRITE_ONCE_KEYS")
	if !given {
		patterns = "fmnist/champion/* fmnist/releases/*/manifest.json"
	}
	return strings.Fields(patterns)
}

func init() {
	for _, pattern := range writeOnceKeys {
		_, err := path.Match(pattern, "")
		bucket, key, _ := strings.Cut(pattern, "/")
		if err == nil && (bucket == "" || key == "" || strings.Contains(pattern, ",")) {
			err = errors.New("it must be BUCKET/KEY, and several are separated by blanks")
		}
		if err != nil {
			logger.Fatal(err, "WRITE_ONCE_KEYS: %s is not a valid pattern", pattern)
		}
	}
	globalMiddlewares = append(globalMiddlewares, refuseForgedUploads, refuseOverwrites)
}

// refuseForgedUploads closes five holes. CVE-2026-40344 and CVE-2026-41145: the handlers of uploads look at the signature of
// one with an unsigned trailer only if it has the header Authorization, and not at all if an archive is to be extracted.
// CVE-2026-34204: whoever may upload may say what only replication should, such as the time and the key of encryption. CVE-2026-39414:
// S3 Select, which nothing here uses, reads a line of any length into memory. And so does the handler of POST forms, which
// nothing here uses either, with a list in the form, before it looks at the signature.
func refuseForgedUploads(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reason := findForgery(r); reason != "" {
			refuse(w, r, reason)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func findForgery(r *http.Request) string {
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Minio-Source-") || strings.HasPrefix(name, "X-Minio-Replication-") {
			return name + " is a replication header; this server does not replicate."
		}
	}
	if _, extracts := r.Header[xhttp.AmzSnowballExtract]; extracts {
		return "This server does not extract archives: their entries would bypass its rules."
	}
	if isRequestPostPolicySignatureV4(r) {
		return "This server takes no POST forms."
	}
	if r.Form.Has("select-type") {
		return "This server does not run S3 Select: a long line would exhaust its memory."
	}
	if hasUnsignedTrailer(r.Form) {
		return "STREAMING-UNSIGNED-PAYLOAD-TRAILER belongs into the header X-Amz-Content-Sha256."
	}
	if hasUnsignedTrailer(r.Header) {
		if code := checkSignature(r); code != ErrNone {
			return "An upload with an unsigned trailer needs a valid signature in the header Authorization: " +
				errorCodes.ToAPIErr(code).Description
		}
	}
	return ""
}

func hasUnsignedTrailer(fields map[string][]string) bool {
	for name, values := range fields {
		if strings.EqualFold(name, xhttp.AmzContentSha256) && slices.ContainsFunc(values, func(value string) bool {
			return strings.EqualFold(strings.TrimSpace(value), unsignedPayloadTrailer)
		}) {
			return true
		}
	}
	return false
}

// checkSignature does for an unsigned trailer what setAuthMiddleware and the handlers do for all other signed requests.
func checkSignature(r *http.Request) APIErrorCode {
	if isRequestPresignedSignatureV4(r) || isRequestPresignedSignatureV2(r) {
		return ErrAccessDenied // credentials in the query would go before those that are signed
	}
	date, code := parseAmzDateHeader(r)
	if code != ErrNone {
		return code
	}
	if UTCNow().Sub(date).Abs() > globalMaxSkewTime {
		return ErrRequestTimeTooSkewed
	}
	return doesSignatureMatch(unsignedPayloadTrailer, r, globalSite.Region(), serviceS3)
}

// refuseOverwrites lets the keys of WRITE_ONCE_KEYS be created, by one conditional request, and never written again, by
// whomever. Who may delete them is decided by policies.
func refuseOverwrites(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if (r.Method == http.MethodPut || r.Method == http.MethodPost) && isWriteOnce(r) && !isCreation(r) {
			refuse(w, r, "This key is written once: it can only be created, by one PUT with If-None-Match: *.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isWriteOnce(r *http.Request) bool {
	bucket := mux.Vars(r)["bucket"]
	object, err := unescapePath(mux.Vars(r)["object"])
	return err != nil || slices.ContainsFunc(writeOnceKeys, func(pattern string) bool {
		matches, _ := path.Match(pattern, bucket+"/"+object)
		return matches
	})
}

// isCreation tells a plain conditional upload from a copy, from a part, and from one that chooses its version.
func isCreation(r *http.Request) bool {
	for name := range r.Form {
		if name != "x-id" && !strings.HasPrefix(name, "X-Amz-") {
			return false
		}
	}
	_, copies := r.Header[xhttp.AmzCopySource]
	return r.Method == http.MethodPut && !copies && slices.Equal(r.Header[xhttp.IfNoneMatch], []string{"*"})
}

func refuse(w http.ResponseWriter, r *http.Request, reason string) {
	defer logger.AuditLog(r.Context(), w, r, mustGetClaimsFromToken(r))
	refusal := errorCodes.ToAPIErr(ErrAccessDenied)
	refusal.Description = reason
	writeErrorResponse(r.Context(), w, refusal, r.URL)
}
