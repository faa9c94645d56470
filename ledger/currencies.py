"""The currencies that money may be in: ISO 4217's codes, as its list one had them on 2026-01-01 (SIX, list-one.xml).

"XXX", which stands for no currency, is left out. What was written with other texts before stays readable.
"""

_LIST_ONE = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF
CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN
PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD
TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAD XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD
XPF XPT XSU XTS XUA YER ZAR ZMW ZWG
"""
CODES = frozenset(_LIST_ONE.split())


def problem(code: str) -> str | None:
    """Why a text is none of them; None: it is one."""
    if code in CODES:
        return None
    near = code.strip().upper()
    return f"must be an ISO 4217 code{f'; did you mean {near}?' if near in CODES else ' such as USD'}"
