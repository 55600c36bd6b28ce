package install

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// checkAuthenticode lets Windows verify the file's signature through its open
// handle, and compares the certificate that Windows has verified. Nothing is
// asked of the network: a signature that must not count any more is what halts
// and withdrawals are for.
func checkAuthenticode(f *os.File, path string, signers []string) (err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	info := &windows.WinTrustFileInfo{FilePath: name, File: windows.Handle(f.Fd())}
	info.Size = uint32(unsafe.Sizeof(*info))
	data := &windows.WinTrustData{
		UIChoice: windows.WTD_UI_NONE, RevocationChecks: windows.WTD_REVOKE_NONE, UnionChoice: windows.WTD_CHOICE_FILE,
		FileOrCatalogOrBlobOrSgnrOrCert: unsafe.Pointer(info), StateAction: windows.WTD_STATEACTION_VERIFY,
		ProvFlags: windows.WTD_CACHE_ONLY_URL_RETRIEVAL | windows.WTD_DISABLE_MD2_MD4, UIContext: windows.WTD_UICONTEXT_INSTALL,
	}
	data.Size = uint32(unsafe.Sizeof(*data))
	action := windows.WINTRUST_ACTION_GENERIC_VERIFY_V2
	verdict := windows.WinVerifyTrustEx(windows.InvalidHWND, &action, data)
	defer func() {
		data.StateAction = windows.WTD_STATEACTION_CLOSE
		err = errors.Join(err, windows.WinVerifyTrustEx(windows.InvalidHWND, &action, data))
	}()
	if verdict != nil {
		return fmt.Errorf("Windows says no: %w", verdict) //nolint:staticcheck // a name
	}
	cert, err := signerOf(data.StateData)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(cert.Raw)
	if slices.Contains(signers, "sha256:"+hex.EncodeToString(sum[:])) || slices.Contains(signers, "cn:"+cert.Subject.CommonName) {
		return nil
	}
	return fmt.Errorf("it is signed by %q (sha256:%x), and %s is wanted", cert.Subject.CommonName, sum, strings.Join(signers, " or "))
}

var (
	wintrust         = windows.NewLazySystemDLL("wintrust.dll")
	provDataOfState  = wintrust.NewProc("WTHelperProvDataFromStateData")
	provSignerOfData = wintrust.NewProc("WTHelperGetProvSignerFromChain")
	provCertOfSigner = wintrust.NewProc("WTHelperGetProvCertFromChain")
)

// providerCert is the beginning of CRYPT_PROVIDER_CERT.
type providerCert struct {
	_    uint32 // its size
	cert *windows.CertContext
}

// signerOf is the certificate of the first signer, copied out of the state of
// the verification that has just been made.
func signerOf(state windows.Handle) (*x509.Certificate, error) {
	none := errors.New("Windows does not tell the signer") //nolint:staticcheck // a name
	for _, p := range []*windows.LazyProc{provDataOfState, provSignerOfData, provCertOfSigner} {
		if err := p.Find(); err != nil {
			return nil, errors.Join(none, err)
		}
	}
	data, _, _ := provDataOfState.Call(uintptr(state))
	if data == 0 {
		return nil, none
	}
	signer, _, _ := provSignerOfData.Call(data, 0, 0, 0)
	if signer == 0 {
		return nil, none
	}
	p, _, _ := provCertOfSigner.Call(signer, 0)
	if p == 0 {
		return nil, none
	}
	found := *(**providerCert)(unsafe.Pointer(&p)) // memory of Windows, valid until the state is closed
	if found.cert == nil || found.cert.Length == 0 {
		return nil, none
	}
	return x509.ParseCertificate(slices.Clone(unsafe.Slice(found.cert.EncodedCert, found.cert.Length)))
}
