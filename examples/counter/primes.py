"""Counts primes below the number on standard input, with the sieve of Eratosthenes."""

limit = int(input())
sieve = bytearray([1]) * limit
sieve[0:2] = b"\0\0"
for n in range(2, int(limit**0.5) + 1):
    if sieve[n]:
        sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
print(f"{sum(sieve)} primes below {limit}")
