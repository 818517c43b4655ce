// Part of package cmd of the MinIO that build-minio builds: a filter that every request passes before its handler.
// It uses MinIO's own functions, so filter and handlers parse each request in the same way. See docs/store.md.
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

// Keys that can only be created: patterns of package path, BUCKET/KEY, separated by spaces.
var writeOnceKeys = readWriteOnceKeys()

func readWriteOnceKeys() []string {
	patterns, isSet := os.LookupEnv("WRITE_ONCE_KEYS")
	if !isSet {
		patterns = "fmnist/champion/* fmnist/releases/*/manifest.json " +
			"fmnist/datasets/*/champion/* fmnist/datasets/*/releases/*/manifest.json"
	}
	return strings.Fields(patterns)
}

func init() {
	for _, pattern := range writeOnceKeys {
		_, err := path.Match(pattern, "")
		bucket, key, _ := strings.Cut(pattern, "/")
		if err == nil && (bucket == "" || key == "" || strings.Contains(pattern, ",")) {
			err = errors.New("write patterns as BUCKET/KEY, separated by spaces")
		}
		if err != nil {
			logger.Fatal(err, "WRITE_ONCE_KEYS: %s is not a valid pattern", pattern)
		}
	}
	globalMiddlewares = append(globalMiddlewares, refuseForgedUploads, refuseOverwrites)
}

// refuseForgedUploads closes five vulnerabilities:
//   - CVE-2026-41145: the upload handlers verify the signature of an unsigned trailer only if there is an Authorization header.
//   - CVE-2026-40344: they do not verify it at all if an archive is to be extracted.
//   - CVE-2026-34204: uploads accept headers that are for replication only, such as the time and the encryption key.
//   - CVE-2026-39414: S3 Select, which we do not use, reads a line of any length into memory.
//   - The handler of POST forms, which we do not use, reads a list of any length before it verifies the signature.
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
		return "This server does not accept POST forms."
	}
	if r.Form.Has("select-type") {
		return "This server does not run S3 Select: a long line would exhaust its memory."
	}
	if hasUnsignedTrailer(r.Form) {
		return "STREAMING-UNSIGNED-PAYLOAD-TRAILER is accepted only in the header X-Amz-Content-Sha256."
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

// checkSignature verifies a request with an unsigned trailer, as setAuthMiddleware and the handlers verify all others.
func checkSignature(r *http.Request) APIErrorCode {
	if isRequestPresignedSignatureV4(r) || isRequestPresignedSignatureV2(r) {
		return ErrAccessDenied // MinIO would prefer the credentials in the query to the signed ones
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

// refuseOverwrites allows only the creation of the keys in WRITE_ONCE_KEYS, by one conditional request, for every user.
// Policies decide who may delete them.
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

// isCreation returns whether a request is a plain conditional upload: not a copy or a part, and without a version ID.
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
