//! The Internet checksum (RFC 1071), over slices and while copying.
//!
//! A sum here is a `u64` that stands for a one's complement sum of 16-bit words in *memory* order:
//! RFC 1071 section 2 (B) shows that the byte order does not matter as long as the result is stored
//! the way the words were loaded, so nothing is ever swapped. Sums of several pieces are added as
//! plain integers, as long as every piece but the last has an even length, and folded once.
//!
//! It knows nothing of packets: which bytes are covered is the caller's business.

#![expect(
    clippy::inline_always,
    reason = "a loop is compiled for AVX2 only where it is inlined into a function that has it"
)]

/// Shorter pieces than this (headers) are not worth asking which instructions the processor has.
const WIDE: usize = 128;

/// The sum of the 16-bit words of `data`; an odd last byte is padded with zero.
///
/// The result is below 2³³, so that thousands of them can be added without overflow. For more than
/// 2³³ bytes it would be wrong; packets have at most 2¹⁶.
#[inline]
pub fn sum(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { sum_avx2(data) };
    }
    sum_words(data)
}

/// Copies `from` to `to` and gives its [`sum`], in one pass.
///
/// Copies only as much as both can hold: the caller has already made them equally long.
#[inline]
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { copy_and_sum_avx2(from, to) };
    }
    copy_and_sum_words(from, to)
}

/// The 16-bit word `word`, given as a number, as a part of a sum.
#[inline]
pub const fn word(word: u16) -> u64 {
    word.to_be() as u64
}

/// Folds a sum to the 16 bits that lie in memory, not yet complemented: what a pseudo-header's
/// partial checksum is stored as.
#[inline]
pub const fn fold(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum as u16).to_ne_bytes()
}

/// The checksum as it lies in memory: the complement of the folded sum.
#[inline]
pub const fn checksum(sum: u64) -> [u8; 2] {
    let [a, b] = fold(sum);
    [!a, !b]
}

/// Like [`checksum`], but never zero, which UDP uses for "no checksum" (RFC 768).
#[inline]
pub const fn checksum_not_zero(sum: u64) -> [u8; 2] {
    match checksum(sum) {
        [0, 0] => [0xff, 0xff],
        other => other,
    }
}

/// Whether data with this sum, its own checksum included, is intact.
#[inline]
pub const fn is_intact(sum: u64) -> bool {
    matches!(fold(sum), [0xff, 0xff])
}

/// Sums 32-bit halves of 64-bit words without a carry.
///
/// `all` adds whole words and loses its carries, `high` adds the upper halves and loses nothing;
/// together they give the sum of the lower halves. That is three cheap vector instructions a word
/// where masking takes four, and add-with-carry does not vectorise at all.
#[derive(Clone, Copy)]
struct Halves {
    all: u64,
    high: u64,
}

impl Halves {
    const ZERO: Self = Self { all: 0, high: 0 };

    #[inline(always)]
    fn add(&mut self, word: [u8; 8]) {
        let word = u64::from_ne_bytes(word);
        self.all = self.all.wrapping_add(word);
        self.high = self.high.wrapping_add(word >> 32);
    }

    /// The sum, with the up to seven bytes after the last whole word.
    ///
    /// Where a 16-bit word stands within a larger one is of no matter to a one's complement sum, so
    /// the rest is added in pieces of four, two and one; going through a padded word would wait for
    /// its stores.
    #[inline(always)]
    fn finish(self, mut rest: &[u8]) -> u64 {
        let low = self.all.wrapping_sub(self.high << 32);
        let sum = low.wrapping_add(self.high);
        let mut sum = (sum & 0xffff_ffff) + (sum >> 32);
        if let Some((four, more)) = rest.split_first_chunk() {
            sum += u64::from(u32::from_ne_bytes(*four));
            rest = more;
        }
        if let Some((two, more)) = rest.split_first_chunk() {
            sum += u64::from(u16::from_ne_bytes(*two));
            rest = more;
        }
        if let [one] = rest {
            sum += u64::from(u16::from_ne_bytes([*one, 0]));
        }
        sum
    }
}

/// A plain loop, because the compiler widens and unrolls it better than lanes by hand.
#[inline(always)]
fn sum_words(data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks();
    let mut halves = Halves::ZERO;
    for word in words {
        halves.add(*word);
    }
    halves.finish(rest)
}

/// How many words are copied at once: with a store in the loop the compiler no longer widens it by
/// itself, and eight lanes measured best.
const LANES: usize = 8;

#[inline(always)]
fn copy_and_sum_words(from: &[u8], to: &mut [u8]) -> u64 {
    let length = from.len().min(to.len());
    let (words, rest) = from[..length].as_chunks();
    let (to_words, to_rest) = to[..length].as_chunks_mut();
    let (blocks, words) = words.as_chunks::<LANES>();
    let (to_blocks, to_words) = to_words.as_chunks_mut::<LANES>();

    let mut lanes = [Halves::ZERO; LANES];
    for (block, to) in blocks.iter().zip(to_blocks) {
        let block = *block;
        *to = block;
        for (lane, word) in lanes.iter_mut().zip(block) {
            lane.add(word);
        }
    }
    let mut halves = Halves::ZERO;
    for lane in lanes {
        halves.all = halves.all.wrapping_add(lane.all);
        halves.high = halves.high.wrapping_add(lane.high);
    }
    for (word, to) in words.iter().zip(to_words) {
        *to = *word;
        halves.add(*word);
    }
    for (byte, to) in rest.iter().zip(to_rest) {
        *to = *byte;
    }
    halves.finish(rest)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(data: &[u8]) -> u64 {
    sum_words(data)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_and_sum_avx2(from: &[u8], to: &mut [u8]) -> u64 {
    copy_and_sum_words(from, to)
}
