#!/bin/sh
# Computes the test vectors of test_concealed.py with nothing but openssl(1) and bytes assembled by
# hand from RFC 9729 and RFC 8446: the code under test has no part in it. Prints "name = hex" lines.
set -eu
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT

hex() { od -An -v -tx1 | tr -d ' \n'; }
unhex() { # POSIX printf knows octal escapes only
    for byte in $(echo "$1" | sed 's/../& /g'); do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o "0x$byte")"
    done
}
text() { printf %s "$1" | hex; }
digest() { unhex "$2" | openssl dgst -binary "-$1" | hex; }
# expand HASH SECRET INFO LENGTH: HKDF-Expand (RFC 5869)
expand() {
    openssl kdf -keylen "$4" -kdfopt mode:EXPAND_ONLY -kdfopt "digest:$1" -kdfopt "hexkey:$2" \
        -kdfopt "hexinfo:$3" -binary HKDF | hex
}

# Ed25519 seed 00 01 .. 1f, in PKCS #8
seed=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
unhex "302e020100300506032b657004220420$seed" >key.der
public=$(openssl pkey -inform DER -in key.der -pubout -outform DER | tail -c 32 | hex)
key_id=$(digest sha256 "$public")
echo "public = $public"
echo "key_id = $key_id"

# vector NAME HASH HASHLEN(hex) SECRET CONTEXT
vector() {
    label=$(text 'tls13 EXPORTER-HTTP-Concealed-Authentication') # 44 = 2c characters
    secret=$(expand "$2" "$4" "00${3}2c${label}${3}$(digest "$2" '')" $((0x$3)))
    # 48 = 0030 bytes; 14 = 0e characters
    output=$(expand "$2" "$secret" "00300e$(text 'tls13 exporter')${3}$(digest "$2" "$5")" 48)
    input=$(echo "$output" | cut -c 1-64)
    spaces=2020202020202020202020202020202020202020202020202020202020202020
    unhex "$spaces$spaces$(text 'HTTP Concealed Authentication')00$input" >signed
    openssl pkeyutl -sign -rawin -keyform DER -inkey key.der -in signed -out proof
    echo "$1.context = $5"
    echo "$1.output = $output"
    echo "$1.proof = $(hex <proof)"
}

# Signature scheme, key ID, public key, scheme, host, port, realm, in the order of section 3.1.
vector name sha256 20 \
    a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf \
    "080720${key_id}20${public}05$(text https)0f$(text vpn.example.org)01bb00"
vector address sha384 30 \
    a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf \
    "080720${key_id}20${public}05$(text https)0d$(text '[2001:db8::1]')115109$(text 'the "lab"')"
# A realm of 70 bytes has a length of two bytes (RFC 9000 section 16).
vector realm sha256 20 \
    a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf \
    "080720${key_id}20${public}05$(text https)0f$(text vpn.example.org)01bb4046$(printf 'r%.0s' $(seq 70) | hex)"
