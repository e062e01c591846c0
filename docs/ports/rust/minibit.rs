//! minibit in Rust: noise, packings, quantisers, the choices of a step, and the replay of a log.
//!
//! The standard library alone. It follows the contracts (docstrings, docs/log_format.md) and is held
//! by the package's vectors:
//!
//! ```sh
//! rustc -O --edition 2021 docs/ports/rust/adapter.rs -o port && minibit conform --port ./port
//! ```
//!
//! Matrices are flat slices in C order, `(n_out, n_in)`; rows along the last axis have a `width`. A
//! refusal is an `Err` that names the argument. Products of integers are widened before they are
//! taken: 32 x 32 bits in u64, 64 x 64 bits in u128. Float32 operations are those of the machine.

#![allow(dead_code)] // an adapter need not offer all
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::OnceLock;

pub type Refused<T> = Result<T, String>;

/// `value`, if it lies from `least` to `most`.
fn within(name: &str, value: u64, least: u64, most: u64) -> Refused<u64> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(format!("{name} must lie from {least} to {most}, got {value}"))
}

// ------------------------------------------------------------------------------- Philox4x32-10

pub const NOISE: u32 = 0; // domains: uses that never share a counter
pub const INITIAL: u32 = 1;
pub const UNITS: u32 = 3;
pub const INPUTS: u32 = 4;
const WORD: u64 = 1 << 32;

/// Ten rounds of two multiplications.
pub fn philox4x32(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p = 0xD251_1F53 * u64::from(c[0]);
        let r = 0xCD9E_8D57 * u64::from(c[2]);
        c = [(r >> 32) as u32 ^ c[1] ^ k[0], r as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The key of a seed: its low half, then its high half.
fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Which words are drawn: seed, domain, step and lane.
#[derive(Clone, Copy)]
pub struct Stream {
    pub seed: u64,
    pub domain: u32,
    pub step: u32,
    pub lane: u32,
}

impl Stream {
    /// The four words of a block, of its draw.
    fn block(&self, block: u32, draw: u32) -> [u32; 4] {
        let counter = [block, (self.domain << 24) + draw, self.lane, self.step];
        philox4x32(counter, key(self.seed))
    }

    /// Words start, ..., start + count - 1.
    pub fn words(&self, start: u64, count: u64) -> Refused<Vec<u32>> {
        within("domain", self.domain.into(), 0, 255)?;
        within("count", count, 0, (4 * WORD).saturating_sub(start))?;
        let blocks = start / 4..(start + count).div_ceil(4);
        let words = blocks.flat_map(|block| self.block(block as u32, 0));
        Ok(words.skip((start % 4) as usize).take(count as usize).collect())
    }

    /// 64-bit draws: two neighbouring words each, the high half first.
    fn draws(&self, count: u64) -> Refused<Vec<u64>> {
        let pair = |w: &[u32]| u64::from(w[0]) << 32 | u64::from(w[1]);
        Ok(self.words(0, 2 * count)?.chunks(2).map(pair).collect())
    }

    /// Doubles in [0, 1): 27 bits of one word above 26 of the next.
    pub fn uniform(&self, count: u64) -> Refused<Vec<f64>> {
        let bits = |u: u64| (u >> 37) << 26 | (u & 0xFFFF_FFFF) >> 6;
        Ok(self.draws(count)?.iter().map(|&u| bits(u) as f64 / (1u64 << 53) as f64).collect())
    }

    /// Integers in [0, high), high from 1 to 2^63: floor(u high / 2^64).
    pub fn integers(&self, high: u64, count: u64) -> Refused<Vec<u64>> {
        within("high", high, 1, 1 << 63)?;
        Ok(self.draws(count)?.iter().map(|&u| scale_down(u, high)).collect())
    }

    /// Floyd's algorithm: `count` distinct numbers below n, increasing; if all, none is drawn.
    fn subset(&self, n: u64, count: u64) -> Refused<Vec<u64>> {
        within("count", count, 0, within("n", n, 0, 1 << 24)?)?;
        if count == n {
            return Ok((0..n).collect());
        }
        let mut taken = BTreeSet::new();
        for (j, u) in (n - count..n).zip(self.draws(count)?) {
            let t = scale_down(u, j + 1);
            if !taken.insert(t) {
                taken.insert(j);
            }
        }
        Ok(taken.into_iter().collect())
    }
}

/// floor(u limit / 2^64), exactly.
fn scale_down(u: u64, limit: u64) -> u64 {
    (u128::from(u) * u128::from(limit) >> 64) as u64
}

// -------------------------------------------------------------------------------- sparse noise

/// The numerator over 2^32 of a share in [0, 1], ties to even.
pub fn numerator_of(name: &str, share: f64) -> Refused<u64> {
    if !(0.0..=1.0).contains(&share) {
        return Err(format!("{name} must lie in [0, 1], got {share}"));
    }
    Ok((share * WORD as f64).round_ties_even() as u64) // an exact product
}

/// A number from 0 on, in fixed point: words of 32 bits, the lowest first, the last three whole.
#[derive(Clone)]
struct Fixed(Vec<u32>);

impl Fixed {
    /// `numerator / 2^32` with so many words behind the point.
    fn new(numerator: u64, fraction: usize) -> Fixed {
        let mut words = vec![0; fraction + 3];
        (words[fraction - 1], words[fraction]) = (numerator as u32, (numerator >> 32) as u32);
        Fixed(words)
    }

    fn plus(&self, other: &Fixed) -> Fixed {
        let mut carry = 0;
        let sum = |(&a, &b): (&u32, &u32)| {
            carry += u64::from(a) + u64::from(b);
            let word = carry as u32;
            carry >>= 32;
            word
        };
        Fixed(self.0.iter().zip(&other.0).map(sum).collect())
    }

    /// The least number above or equal, if `up` and anything was cut off.
    fn raised(self, up: bool) -> Fixed {
        if !up {
            return self;
        }
        let mut one = vec![0; self.0.len()];
        one[0] = 1;
        self.plus(&Fixed(one))
    }

    /// Its square, rounded down or up.
    fn squared(&self, up: bool) -> Fixed {
        let (a, fraction) = (&self.0, self.0.len() - 3);
        let mut full = vec![0u32; 2 * a.len() + 1];
        for (i, &x) in a.iter().enumerate().filter(|(_, &x)| x != 0) {
            let mut carry = 0;
            for (j, &y) in a.iter().enumerate() {
                carry += u64::from(x) * u64::from(y) + u64::from(full[i + j]);
                full[i + j] = carry as u32;
                carry >>= 32;
            }
            full[i + a.len()] = carry as u32;
        }
        let cut = full[..fraction].iter().any(|&word| word != 0);
        Fixed(full[fraction..][..a.len()].to_vec()).raised(up && cut)
    }

    /// Itself times `more` over `fewer`, both below 2^49, rounded down or up.
    fn times(&self, more: u64, fewer: u64, up: bool) -> Fixed {
        let (mut carry, mut words) = (0u128, self.0.clone());
        for word in &mut words {
            carry += u128::from(*word) * u128::from(more);
            *word = carry as u32;
            carry >>= 32;
        }
        let mut rest = 0u128;
        for word in words.iter_mut().rev() {
            rest = rest << 32 | u128::from(*word);
            *word = (rest / u128::from(fewer)) as u32;
            rest %= u128::from(fewer);
        }
        Fixed(words).raised(up && rest != 0)
    }

    /// floor(2^64 x), for x below 2^32.
    fn floor64(&self) -> u128 {
        let top = &self.0[self.0.len() - 5..];
        (0..3).map(|i| u128::from(top[i]) << (32 * i)).sum()
    }
}

/// A density's numerator, the bits of a block's size, and T_j = floor(2^64 P(k <= j)).
pub struct NoiseConstants {
    pub numerator: u64,
    pub bits: u32,
    pub table: Vec<u64>,
}

pub fn noise_constants(numerator: u64) -> Refused<NoiseConstants> {
    within("density", numerator, 0, WORD)?;
    let bits = (4..=16).rev().find(|&b| b == 4 || numerator << b <= WORD).unwrap_or(4);
    let mut fraction = 8; // words: 256 bits nearly always do
    loop {
        if let Some(table) = count_table(numerator, bits, fraction) {
            return Ok(NoiseConstants { numerator, bits, table });
        }
        fraction *= 2; // with 32 B bits nothing is rounded
    }
}

/// The table from probabilities below and above the true ones; None where their floors differ.
fn count_table(numerator: u64, bits: u32, fraction: usize) -> Option<Vec<u64>> {
    let (size, p, q) = (1u64 << bits, numerator, WORD - numerator);
    if p == 0 || q == 0 {
        return Some(vec![0; if p == 0 { 0 } else { size as usize }]);
    }
    let (mut low, mut high) = (Fixed::new(q, fraction), Fixed::new(q, fraction));
    for _ in 0..bits {
        (low, high) = (low.squared(false), high.squared(true)); // P(0) = (1 - density)^B
    }
    let (mut below, mut above, mut table) = (low.clone(), high.clone(), vec![]);
    for j in 0..size {
        let floor = below.floor64();
        if floor >= u128::from(u64::MAX) {
            break;
        }
        if floor != above.floor64() {
            return None;
        }
        table.push(floor as u64);
        let (more, fewer) = ((size - j) * p, (j + 1) * q);
        low = low.times(more, fewer, false); // P(k = j + 1)
        high = high.times(more, fewer, true);
        (below, above) = (below.plus(&low), above.plus(&high));
    }
    Some(table)
}

/// Positions, increasing, and signs of one perturbation; `blocks` draws only some of its blocks.
pub fn sparse_noise(
    seed: u64,
    step: u32,
    perturbation: u32,
    size: u64,
    constants: &NoiseConstants,
    blocks: Option<&[u64]>,
) -> Refused<(Vec<u64>, Vec<i8>)> {
    let NoiseConstants { bits, ref table, .. } = *constants;
    let total = size.div_ceil(1 << bits);
    let chosen: BTreeSet<u64> = match blocks {
        Some(blocks) => blocks.iter().copied().collect(),
        None => (0..total).collect(),
    };
    if let Some(&last) = chosen.last() {
        within("blocks", last + 1, 1, total.min(WORD))?;
    }
    let stream = Stream { seed, domain: NOISE, step, lane: perturbation };
    let (mut positions, mut signs) = (vec![], vec![]);
    for block in chosen.into_iter().filter(|_| !table.is_empty()) {
        let mut words = (0..1 << 24).flat_map(|draw| stream.block(block as u32, draw));
        let mut next = || words.next().expect("a block needs fewer draws");
        let u = u64::from(next()) << 32 | u64::from(next());
        let count = table.partition_point(|&bound| bound <= u); // #{j : T_j <= u}
        let mut entries = BTreeMap::new();
        while entries.len() < count {
            let word = next();
            let position = (block << bits) + u64::from(word >> (32 - bits));
            entries.entry(position).or_insert(1 - 2 * (word & 1) as i8); // who comes first stays
        }
        for (&position, &sign) in entries.range(..size) {
            positions.push(position); // the last block is cut
            signs.push(sign);
        }
    }
    Ok((positions, signs))
}

/// Initial weights of a layer: 0 where a word is below the numerator, else its lowest bit's sign.
pub fn initial_codes(seed: u64, count: u64, zeros: u64, layer: u32) -> Refused<Vec<i8>> {
    within("zeros", zeros, 0, WORD)?;
    let stream = Stream { seed, domain: INITIAL, step: 0, lane: layer };
    let code = |&w: &u32| if u64::from(w) < zeros { 0 } else { 1 - 2 * (w & 1) as i8 };
    Ok(stream.words(0, count)?.iter().map(code).collect())
}

/// Distinct units of a layer, increasing.
pub fn draw_units(seed: u64, step: u32, layer: u32, n_out: u64, count: u64) -> Refused<Vec<u64>> {
    Stream { seed, domain: UNITS, step, lane: layer }.subset(n_out, count)
}

/// Distinct inputs of a unit: its lane is 2^20 layer + unit.
pub fn draw_inputs(
    seed: u64,
    step: u32,
    layer: u64,
    unit: u64,
    n_in: u64,
    count: u64,
) -> Refused<Vec<u64>> {
    let lane = within("layer", layer, 0, (1 << 12) - 1)? << 20;
    let lane = lane + within("unit", unit, 0, (1 << 20) - 1)?;
    Stream { seed, domain: INPUTS, step, lane: lane as u32 }.subset(n_in, count)
}

// ------------------------------------------------------------------------------------ packings

/// Codes as digits t + 1.
fn digits(codes: &[i8]) -> Refused<Vec<u8>> {
    if let Some(at) = codes.iter().position(|t| !(-1..=1).contains(t)) {
        return Err(format!("codes must be -1, 0 or 1, got {} at {at}", codes[at]));
    }
    Ok(codes.iter().map(|&t| (t + 1) as u8).collect())
}

/// Digits as codes.
fn codes(digits: impl Iterator<Item = u8>) -> Vec<i8> {
    digits.map(|digit| digit as i8 - 1).collect()
}

fn check_length(packed: &[u8], length: usize) -> Refused<()> {
    within("length of packed", packed.len() as u64, length as u64, length as u64).map(|_| ())
}

/// Refuse the 2-bit code 3, which stands for no weight.
fn check_twos(packed: &[u8]) -> Refused<()> {
    match packed.iter().position(|byte| byte & byte >> 1 & 0x55 != 0) {
        Some(at) => Err(format!("packed holds the 2-bit code 3 in byte {at}")),
        None => Ok(()),
    }
}

/// Two bits a code, four codes a byte, the first lowest; missing ones are weight 0.
pub fn pack2(codes: &[i8]) -> Refused<Vec<u8>> {
    let byte = |four: &[u8]| (0..4).map(|i| four.get(i).unwrap_or(&1) << (2 * i)).sum();
    Ok(digits(codes)?.chunks(4).map(byte).collect())
}

pub fn unpack2(packed: &[u8], count: usize) -> Refused<Vec<i8>> {
    check_length(packed, count.div_ceil(4))?;
    check_twos(packed)?;
    Ok(codes((0..count).map(|i| packed[i / 4] >> (2 * (i % 4)) & 3)))
}

const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Five base-3 digits a byte, the first code the lowest digit; missing ones are weight 0.
pub fn pack_base3(codes: &[i8]) -> Refused<Vec<u8>> {
    let byte = |five: &[u8]| (0..5).map(|i| five.get(i).unwrap_or(&1) * POWERS[i]).sum();
    Ok(digits(codes)?.chunks(5).map(byte).collect())
}

pub fn unpack_base3(packed: &[u8], count: usize) -> Refused<Vec<i8>> {
    check_length(packed, count.div_ceil(5))?;
    if let Some(at) = packed.iter().position(|&byte| byte > 242) {
        return Err(format!("packed must be 0..242, got {} at {at}", packed[at]));
    }
    Ok(codes((0..count).map(|i| packed[i / 5] / POWERS[i % 5] % 3)))
}

/// The plane of the ones, then that of the minus ones; eight codes a byte, the first lowest.
pub fn pack_bitplanes(codes: &[i8]) -> Refused<Vec<u8>> {
    let digits = digits(codes)?;
    let plane = |digit: u8| {
        let byte =
            move |eight: &[u8]| (0..8).map(|i| u8::from(eight.get(i) == Some(&digit)) << i).sum();
        digits.chunks(8).map(byte)
    };
    Ok(plane(2).chain(plane(0)).collect())
}

pub fn unpack_bitplanes(packed: &[u8], count: usize) -> Refused<Vec<i8>> {
    let half = count.div_ceil(8);
    check_length(packed, 2 * half)?;
    let (ones, minus) = packed.split_at(half);
    if let Some(at) = (0..half).find(|&at| ones[at] & minus[at] != 0) {
        return Err(format!("packed marks a code of byte {at} as both 1 and -1"));
    }
    let bit = |plane: &[u8], i: usize| plane[i / 8] >> (i % 8) & 1;
    Ok(codes((0..count).map(|i| 1 + bit(ones, i) - bit(minus, i))))
}

/// Hugging Face's layout: byte row r holds rows r, R + r, 2R + r, 3R + r, with R = ceil(n_out / 4).
pub fn to_hf(codes: &[i8], n_out: usize, n_in: usize) -> Refused<Vec<u8>> {
    let (digits, quarter) = (digits(codes)?, n_out.div_ceil(4));
    let mut packed = vec![0; quarter * n_in]; // missing rows are bits 00, which decode to -1
    for (at, digit) in digits.into_iter().enumerate() {
        let (row, column) = (at / n_in, at % n_in);
        packed[row % quarter * n_in + column] |= digit << (2 * (row / quarter));
    }
    Ok(packed)
}

pub fn from_hf(packed: &[u8], n_out: usize, n_in: usize) -> Refused<Vec<i8>> {
    let quarter = n_out.div_ceil(4);
    check_length(packed, quarter * n_in)?;
    check_twos(packed)?;
    let digit = |at: usize| {
        let (row, column) = (at / n_in, at % n_in);
        packed[row % quarter * n_in + column] >> (2 * (row / quarter)) & 3
    };
    Ok(codes((0..n_out * n_in).map(digit)))
}

/// The bits of a number in half precision, by way of float32, ties to even.
fn half_bits(x: f64) -> Refused<u16> {
    let size = x as f32;
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-14);
    let units = (f64::from(size) / 2f64.powi(exponent - 10)).round_ties_even();
    let bits = f64::from(exponent + 14) * 1024.0 + units; // a carry is right, too
    if !(x >= 0.0 && bits < f64::from(0x7C00) && (bits > 0.0 || x == 0.0)) {
        return Err(format!("scale must fit half precision, got {x}"));
    }
    Ok(bits as u16)
}

/// The number of 16 bits in half precision: a scale, so neither negative nor infinite.
fn half_number(bits: u16) -> Refused<f32> {
    let (exponent, fraction) = (i32::from(bits >> 10), f32::from(bits & 1023));
    match bits {
        0..=0x3FF => Ok(fraction * 2f32.powi(-24)),
        0x400..=0x7BFF => Ok((1024.0 + fraction) * 2f32.powi(exponent - 25)),
        0x8000 => Ok(-0.0),
        _ => Err(format!("packed holds the scale of bits {bits:#06x}")),
    }
}

const GGML: usize = 256; // weights of a row that share a block, and its scale

/// The codes of byte `byte` of a TQ1_0 block: the first, their distance, and how many.
fn tq1_place(byte: usize) -> (usize, usize, usize) {
    match byte {
        0..=31 => (byte, 32, 5),
        32..=47 => (160 + byte - 32, 16, 5),
        _ => (240 + byte - 48, 4, 4),
    }
}

/// ggml's blocks: `bytes` that `byte` makes of a block's digits, then the scale, 0 for zeros alone.
fn to_blocks(
    codes: &[i8],
    n_in: usize,
    scales: &[f64],
    bytes: usize,
    byte: impl Fn(&[u8], usize) -> u8,
) -> Refused<Vec<u8>> {
    let digits = digits(codes)?;
    if n_in % GGML != 0 {
        return Err(format!("codes must have rows of a multiple of {GGML}, got {n_in}"));
    }
    let mut packed = vec![];
    for (number, block) in digits.chunks(GGML).enumerate() {
        let bits = half_bits(scales[number % scales.len()])?; // one scale, or one a block
        let zeros = block.iter().all(|&digit| digit == 1);
        packed.extend((0..bytes).map(|at| byte(block, at)));
        packed.extend(if zeros { 0 } else { bits }.to_le_bytes());
    }
    Ok(packed)
}

/// Codes and scales of ggml's blocks: `read` gives the digits that a byte holds, by their places.
fn from_blocks(
    packed: &[u8],
    bytes: usize,
    read: impl Fn(&[u8], &mut [u8]) -> Refused<()>,
) -> Refused<(Vec<i8>, Vec<f32>)> {
    if packed.len() % (bytes + 2) != 0 {
        return Err(format!("packed must be blocks of {} bytes, got {}", bytes + 2, packed.len()));
    }
    let (mut all, mut scales) = (vec![], vec![]);
    for block in packed.chunks(bytes + 2) {
        let mut digits = [0; GGML];
        read(&block[..bytes], &mut digits)?;
        all.extend(codes(digits.into_iter()));
        scales.push(half_number(u16::from_le_bytes([block[bytes], block[bytes + 1]]))?);
    }
    Ok((all, scales))
}

/// ggml's TQ1_0, 54 bytes a block: five digits as a binary fraction, ceil(256 v / 243).
pub fn to_tq1_0(codes: &[i8], n_in: usize, scales: &[f64]) -> Refused<Vec<u8>> {
    to_blocks(codes, n_in, scales, 52, |digits, byte| {
        let (first, distance, count) = tq1_place(byte);
        let digit = |n: usize| if n < count { u32::from(digits[first + n * distance]) } else { 0 };
        ((0..5).fold(0, |v, n| 3 * v + digit(n)) * 256).div_ceil(243) as u8 // the first is highest
    })
}

pub fn from_tq1_0(packed: &[u8]) -> Refused<(Vec<i8>, Vec<f32>)> {
    from_blocks(packed, 52, |block, digits| {
        for (at, &byte) in block.iter().enumerate() {
            let (first, distance, count) = tq1_place(at);
            let mut v = u32::from(byte) * 243 >> 8;
            v -= if count == 4 { v % 3 } else { 0 };
            if (256 * v).div_ceil(243) != u32::from(byte) {
                return Err(format!("packed holds no TQ1_0 byte at {at}: {byte}"));
            }
            for n in 0..count {
                digits[first + n * distance] = (v / 3u32.pow(4 - n as u32) % 3) as u8;
            }
        }
        Ok(())
    })
}

/// ggml's TQ2_0, 66 bytes a block: of each 128 codes, four that are 32 apart share a byte.
pub fn to_tq2_0(codes: &[i8], n_in: usize, scales: &[f64]) -> Refused<Vec<u8>> {
    to_blocks(codes, n_in, scales, 64, |digits, byte| {
        (0..4).map(|i| digits[byte / 32 * 128 + 32 * i + byte % 32] << (2 * i)).sum()
    })
}

pub fn from_tq2_0(packed: &[u8]) -> Refused<(Vec<i8>, Vec<f32>)> {
    from_blocks(packed, 64, |block, digits| {
        check_twos(block)?;
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = block[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
        }
        Ok(())
    })
}

/// The distance of the four codes that share a byte of I2_S, which has three layouts.
fn i2_distance(n_out: usize, n_in: usize, layout: &str) -> Refused<usize> {
    let (distance, fits) = match layout {
        "x86" => (32, n_in % 128 == 0),
        "arm" => (16, n_in % 64 == 0),
        "rows" => (n_in, n_out % 4 == 0),
        _ => return Err(format!("layout must be x86, arm or rows, got {layout}")),
    };
    if fits {
        Ok(distance)
    } else {
        Err(format!("codes of {n_out} x {n_in} do not fit {layout}"))
    }
}

/// The byte and the shift of code i: the first of the four is in the highest bits.
fn i2_place(i: usize, distance: usize) -> (usize, usize) {
    let (group, inside) = (i / (4 * distance), i % (4 * distance));
    (group * distance + inside % distance, 6 - 2 * (inside / distance))
}

/// bitnet.cpp's I2_S: two bits a code, then 32 bytes that begin with one float32 scale.
pub fn to_i2_s(
    codes: &[i8],
    n_out: usize,
    n_in: usize,
    scale: f64,
    layout: &str,
) -> Refused<Vec<u8>> {
    let (digits, distance, one) = (digits(codes)?, i2_distance(n_out, n_in, layout)?, scale as f32);
    if !(one >= 0.0 && one.is_finite() && (one > 0.0 || scale == 0.0)) {
        return Err(format!("scale must be one finite number >= 0, got {scale}"));
    }
    let mut packed = vec![0; n_out * n_in / 4];
    for (i, digit) in digits.into_iter().enumerate() {
        let (byte, shift) = i2_place(i, distance);
        packed[byte] |= digit << shift;
    }
    packed.extend(one.to_le_bytes());
    packed.resize(packed.len() + 28, 0);
    Ok(packed)
}

pub fn from_i2_s(
    packed: &[u8],
    n_out: usize,
    n_in: usize,
    layout: &str,
) -> Refused<(Vec<i8>, f32)> {
    let (distance, size) = (i2_distance(n_out, n_in, layout)?, n_out * n_in / 4);
    check_length(packed, size + 32)?;
    check_twos(&packed[..size])?;
    let scale = f32::from_le_bytes(packed[size..size + 4].try_into().expect("four bytes"));
    if !(scale >= 0.0 && scale.is_finite()) {
        return Err(format!("packed must hold a finite scale >= 0, got {scale}"));
    }
    let digit = |i: usize| {
        let (byte, shift) = i2_place(i, distance);
        packed[byte] >> shift & 3
    };
    Ok((codes((0..n_out * n_in).map(digit)), scale))
}

// ---------------------------------------------------------------------------------- quantisers

const SMALLEST: f32 = 1e-5; // gamma and absmax are at least this

fn check_finite(name: &str, x: &[f32]) -> Refused<()> {
    match x.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(format!("{name} must be finite, got {} at {at}", x[at])),
        None => Ok(()),
    }
}

/// The mean of f(w), summed in doubles and rounded once.
fn mean(w: &[f32], f: impl Fn(f64) -> f64) -> Refused<f32> {
    check_finite("w", w)?;
    if w.is_empty() {
        return Err("w must not be empty".into());
    }
    Ok((w.iter().map(|&x| f(x.into())).sum::<f64>() / w.len() as f64) as f32)
}

/// Codes and gamma = max(mean |w|, 1e-5); the reciprocal comes first: w * (1 / gamma).
pub fn absmean_quantize(w: &[f32]) -> Refused<(Vec<i8>, f32)> {
    let gamma = mean(w, f64::abs)?.max(SMALLEST);
    let inverse = 1.0 / gamma;
    let code = |&x: &f32| (x * inverse).round_ties_even().clamp(-1.0, 1.0) as i8;
    Ok((w.iter().map(code).collect(), gamma))
}

/// The sign of w - mean w, -1 at the mean itself, and beta = mean |w|: BitNet b1.
pub fn binary_quantize(w: &[f32]) -> Refused<(Vec<i8>, f32)> {
    let centre = mean(w, |x| x)?;
    let codes = w.iter().map(|&x| if x > centre { 1 } else { -1 }).collect();
    Ok((codes, mean(w, f64::abs)?))
}

/// Codes and scale = (1 / max(absmax, 1e-5)) 127 of every row.
pub fn absmax_quantize(x: &[f32], width: usize) -> Refused<(Vec<i8>, Vec<f32>)> {
    check_finite("x", x)?;
    let rows = x.chunks(width.max(1));
    let scale = |row: &[f32]| 1.0 / row.iter().fold(SMALLEST, |most, v| most.max(v.abs())) * 127.0;
    let scales: Vec<f32> = rows.clone().map(scale).collect();
    let code = |(row, &s): (&[f32], &f32)| {
        let code = move |v: &f32| (v * s).round_ties_even() as i8;
        row.iter().map(code).collect::<Vec<_>>()
    };
    Ok((rows.zip(&scales).flat_map(code).collect(), scales))
}

pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];
const TINY: f32 = 1e-38; // what divides a block is at least this

/// How many midpoints of the codebook a value exceeds: one at a midpoint has the lower code.
pub fn nearest_code(s: f32, codebook: &[f32]) -> u8 {
    codebook.windows(2).filter(|pair| s > (pair[0] + pair[1]) / 2.0).count() as u8
}

/// NF4 bytes and the absmax of every block: the first code of a byte is in its high half.
pub fn quantize_nf4(w: &[f32], block: usize) -> Refused<(Vec<u8>, Vec<f32>)> {
    mean(w, |x| x)?;
    if !block.is_power_of_two() || !(32..=4096).contains(&block) {
        return Err(format!("block must be a power of two from 32 to 4096, got {block}"));
    }
    let (mut codes, mut absmax) = (vec![], vec![]);
    for part in w.chunks(block) {
        let largest = part.iter().fold(0f32, |most, x| most.max(x.abs()));
        let divisor = largest.max(TINY);
        let inverse = 1.0 / divisor;
        let whole = part.len() == block; // a shorter last block divides, and keeps the clamped value
        absmax.push(if whole { largest } else { divisor });
        let code = |x: &f32| {
            let s = if whole { x * inverse } else { x / divisor };
            nearest_code(s.clamp(-1.0, 1.0), &NF4_CODE)
        };
        codes.extend(part.iter().map(code));
    }
    let byte = |two: &[u8]| two[0] << 4 | two.get(1).unwrap_or(&7); // a lone code meets a zero
    Ok((codes.chunks(2).map(byte).collect(), absmax))
}

pub fn dequantize_nf4(packed: &[u8], absmax: &[f32], count: usize, block: usize) -> Vec<f32> {
    let code = |i: usize| packed[i / 2] >> (if i % 2 == 0 { 4 } else { 0 }) & 15;
    (0..count).map(|i| NF4_CODE[usize::from(code(i))] * absmax[i / block]).collect()
}

/// Mark the k largest magnitudes of each row; of equal ones the lowest index wins.
pub fn topk_mask(x: &[f64], width: usize, k: usize) -> Refused<Vec<bool>> {
    if let Some(at) = x.iter().position(|v| v.is_nan()) {
        return Err(format!("x must hold no NaN, got one at {at}"));
    }
    within("k", k as u64, 1, width as u64)?;
    let mut mask = vec![false; x.len()];
    for (row, marks) in x.chunks(width).zip(mask.chunks_mut(width)) {
        for i in largest(row, k) {
            marks[i] = true;
        }
    }
    Ok(mask)
}

/// Where the k largest magnitudes are; a stable sort gives ties to the lowest index.
fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&i, &j| row[j].abs().total_cmp(&row[i].abs()));
    order.truncate(k);
    order
}

/// Mark the n largest magnitudes of every m neighbours in rows of `width`.
pub fn block_topk_mask(x: &[f64], width: usize, n: usize, m: usize) -> Refused<Vec<bool>> {
    if m == 0 || width % m != 0 {
        return Err(format!("m must divide the last axis {width}, got {m}"));
    }
    topk_mask(x, m, n)
}

// ------------------------------------------------------------------------- products and the MLP

fn check_rows(length: usize, n_in: usize) -> Refused<()> {
    if n_in == 0 || length % n_in != 0 {
        return Err(format!("x must have rows of {n_in}, got {length} entries"));
    }
    Ok(())
}

/// Rows of int8 codes times ternary codes (n_out, n_in): exact int32 sums.
pub fn ternary_matmul_int8(x: &[i8], codes: &[i8], n_in: usize) -> Refused<Vec<i32>> {
    check_rows(x.len(), n_in)?;
    let dot =
        |row: &[i8], w: &[i8]| row.iter().zip(w).map(|(&a, &t)| i32::from(a) * i32::from(t)).sum();
    let row = |row| codes.chunks(n_in).map(move |w| dot(row, w));
    Ok(x.chunks(n_in).flat_map(row).collect())
}

/// Quantise rows, multiply exactly, scale: y = z (gamma / scale), each step a float32.
pub fn ternary_matmul(x: &[f32], codes: &[i8], n_in: usize, gamma: f32) -> Refused<Vec<f32>> {
    check_rows(x.len(), n_in)?;
    let (q, scale) = absmax_quantize(x, n_in)?;
    let n_out = codes.len() / n_in;
    let sums = ternary_matmul_int8(&q, codes, n_in)?;
    Ok(sums.iter().enumerate().map(|(i, &z)| z as f32 * (gamma / scale[i / n_out])).collect())
}

/// (x - mean) / sqrt(mean (x - mean)^2 + eps) of every row.
pub fn layer_norm(x: &[f64], width: usize, eps: f64) -> Refused<Vec<f64>> {
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(format!("eps must be positive and finite, got {eps}"));
    }
    check_rows(x.len(), width)?;
    let mut z = vec![];
    for row in x.chunks(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
        z.extend(row.iter().map(|v| (v - mean) / (variance + eps).sqrt()));
    }
    Ok(z)
}

/// A layer of an MLP.
pub struct Layer<'a> {
    pub codes: &'a [i8],
    pub n_out: usize,
    pub n_in: usize,
}

/// How the layers of an MLP work together.
pub struct MlpOptions<'a> {
    pub logit_scale: f64,
    pub eps: f64,
    pub activations: &'a str, // "float" or "int8"
    pub single: bool,         // whether what a layer returns is rounded to float32
}

/// Logits of the ternary MLP: h <- relu(layer_norm(h W^T)), then h W^T.
///
/// With int8 activations all hidden layers but the last round what the norm returns, before relu.
pub fn mlp(layers: &[Layer], x: &[f64], options: &MlpOptions) -> Refused<Vec<f64>> {
    if !["float", "int8"].contains(&options.activations) {
        return Err(format!("activations must be float or int8, got {}", options.activations));
    }
    let single = |h: Vec<f64>| match options.single {
        true => h.into_iter().map(|v| f64::from(v as f32)).collect(),
        false => h,
    };
    let mut h = x.to_vec();
    for (number, layer) in layers.iter().enumerate() {
        check_rows(h.len(), layer.n_in)?;
        let dot = |row: &[f64], w: &[i8]| row.iter().zip(w).map(|(a, &t)| a * f64::from(t)).sum();
        let rows = h.chunks(layer.n_in);
        let y = rows.flat_map(|row| layer.codes.chunks(layer.n_in).map(move |w| dot(row, w)));
        h = single(y.collect());
        if number + 1 == layers.len() {
            break;
        }
        h = single(layer_norm(&h, layer.n_out, options.eps)?);
        if options.activations == "int8" && number + 2 < layers.len() {
            let tokens: Vec<f32> = h.iter().map(|&v| v as f32).collect();
            let (codes, scale) = absmax_quantize(&tokens, layer.n_out)?;
            let value = |(i, &q): (usize, &i8)| f64::from(f32::from(q) / scale[i / layer.n_out]);
            h = codes.iter().enumerate().map(value).collect();
        }
        h = h.into_iter().map(|v| if v <= 0.0 { 0.0 } else { v }).collect(); // NaN stays
    }
    Ok(single(h.into_iter().map(|v| options.logit_scale * v).collect()))
}

// ------------------------------------------------------------------------ the choices of a step

/// |sum a| / sqrt(sum a^2); 0 where no sample has an alignment.
fn t_score(alignment: f64, square: f64) -> f64 {
    if square.sqrt() > 0.0 {
        alignment.abs() / square.sqrt()
    } else {
        0.0
    }
}

/// An alignment that overflowed tells nothing, and is 0.
fn told(alignments: &[f64]) -> Vec<f64> {
    alignments.iter().map(|&a| if a.is_finite() { a } else { 0.0 }).collect()
}

fn sign(a: f64) -> i8 {
    i8::from(a > 0.0) - i8::from(a < 0.0)
}

/// Codes of a `sampled` step: sign(a) where the score is at least the median of all, else 0.
pub fn keep_terns(alignments: &[f64], squares: &[f64], score: &str) -> Refused<Vec<i8>> {
    let alignments = told(alignments);
    let pairs = alignments.iter().zip(squares);
    let scores: Vec<f64> = match score {
        "absolute" => alignments.iter().map(|a| a.abs()).collect(),
        "t" => pairs.map(|(&a, &s)| t_score(a, s)).collect(),
        _ => return Err(format!("score must be absolute or t, got {score}")),
    };
    let mut order = scores.clone();
    order.sort_by(f64::total_cmp);
    let n = order.len();
    let median = if n == 0 { 0.0 } else { (order[(n - 1) / 2] + order[n / 2]) / 2.0 };
    let code = |(&a, &s): (&f64, &f64)| if s >= median { sign(a) } else { 0 };
    Ok(alignments.iter().zip(&scores).map(code).collect())
}

/// The `count` best legal moves of a layer: candidates, increasing, and their directions.
pub fn keep_moves(
    alignments: &[f64],
    squares: &[f64],
    weights: &[i8],
    count: usize,
) -> (Vec<u64>, Vec<i8>) {
    let alignments = told(alignments);
    let direction = |i: usize| -sign(alignments[i]);
    let legal = |i: usize| (weights[i] + direction(i)).abs() <= 1; // else the clamp would cancel it
    let score = |i: usize| if legal(i) { t_score(alignments[i], squares[i]) } else { 0.0 };
    let scores: Vec<f64> = (0..alignments.len()).map(score).collect();
    let mut kept = largest(&scores, count.min(scores.iter().filter(|&&s| s > 0.0).count()));
    kept.sort_unstable();
    (kept.iter().map(|&i| i as u64).collect(), kept.iter().map(|&i| direction(i)).collect())
}

// ------------------------------------------------------------------------------ CRC-32, SHA-256

/// Running CRC-32 of zlib, PNG and Ethernet.
pub fn crc32(bytes: &[u8], crc: u32) -> u32 {
    let mut crc = !crc;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// The first 32 fractional bits of the n-th roots of the first primes.
fn roots_of_primes(n: u32, count: usize) -> Vec<u32> {
    let primes = (2u128..).filter(|&p| (2..p).all(|d| p % d != 0)).take(count);
    let root = |p: u128| {
        let fits = |root: u128| root.pow(n) <= p << (32 * n); // below 2^108
        (0..36)
            .rev()
            .fold(0, |root, bit| if fits(root | 1 << bit) { root | 1 << bit } else { root })
            as u32
    };
    primes.map(root).collect()
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    static ROUNDS: OnceLock<Vec<u32>> = OnceLock::new();
    let (mut state, rounds) =
        (roots_of_primes(2, 8), ROUNDS.get_or_init(|| roots_of_primes(3, 64)));
    let mut data = bytes.to_vec();
    data.push(128);
    data.resize((data.len() + 8).next_multiple_of(64), 0);
    let length = data.len();
    data[length - 8..].copy_from_slice(&(8 * bytes.len() as u64).to_be_bytes());
    for block in data.chunks(64) {
        let mut w: Vec<u32> =
            block.chunks(4).map(|b| u32::from_be_bytes(b.try_into().expect("four"))).collect();
        for i in 16..64 {
            let (x, y) = (w[i - 15], w[i - 2]);
            let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ y >> 10;
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let mut v: [u32; 8] = state.clone().try_into().expect("eight words");
        for i in 0..64 {
            let [a, b, c, d, e, f, g, h] = v;
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h
                .wrapping_add(s1)
                .wrapping_add(e & f ^ !e & g)
                .wrapping_add(rounds[i])
                .wrapping_add(w[i]);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
            v = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
        }
        for (word, more) in state.iter_mut().zip(v) {
            *word = word.wrapping_add(more);
        }
    }
    let mut out = [0; 32];
    for (bytes, word) in out.chunks_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

/// SHA-256 of all weights, int8, layer after layer.
pub fn digest(weights: &[i8]) -> [u8; 32] {
    sha256(&weights.iter().map(|&w| w as u8).collect::<Vec<_>>())
}

// ---------------------------------------------------------------------------------------- JSON

/// JSON; a number stays text, as no float holds 64 bits.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Read a text that holds one value; a key that comes twice is refused.
    pub fn read(text: &str) -> Refused<Json> {
        let mut reader = JsonReader { text, at: 0, depth: 0 };
        let value = reader.value()?;
        if reader.peek().is_some() {
            Err(reader.error("the end"))
        } else {
            Ok(value)
        }
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => {
                entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The entry of an object that must be there.
    pub fn at(&self, key: &str) -> Refused<&Json> {
        self.get(key).ok_or_else(|| format!("{key} is missing"))
    }

    pub fn list(&self) -> Refused<&[Json]> {
        if let Json::List(items) = self {
            Ok(items)
        } else {
            Err(format!("no list but {self:?}"))
        }
    }

    pub fn text(&self) -> Refused<&str> {
        if let Json::Text(text) = self {
            Ok(text)
        } else {
            Err(format!("no text but {self:?}"))
        }
    }

    /// A whole number below 2^64, written without a point.
    pub fn whole(&self) -> Refused<u64> {
        match self {
            Json::Number(digits) => {
                digits.parse().map_err(|_| format!("{digits} is no whole number"))
            }
            _ => Err(format!("no number but {self:?}")),
        }
    }
}

struct JsonReader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> JsonReader<'a> {
    fn error(&self, wanted: &str) -> String {
        format!("JSON: {wanted} expected at byte {}", self.at)
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Step over a byte if it comes next.
    fn skip(&mut self, byte: u8) -> bool {
        let comes = self.peek() == Some(byte);
        self.at += usize::from(comes);
        comes
    }

    fn value(&mut self) -> Refused<Json> {
        self.depth += 1;
        if self.depth > 100 {
            return Err(self.error("less depth"));
        }
        let value = match self.peek() {
            Some(b'{') => Json::Object(self.object()?),
            Some(b'[') => Json::List(self.items()?),
            Some(b'"') => Json::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Json::Number(self.number()?),
            _ => {
                let words = [
                    ("null", Json::Null),
                    ("true", Json::Bool(true)),
                    ("false", Json::Bool(false)),
                ];
                let rest = &self.text[self.at..];
                let word = words.into_iter().find(|(word, _)| rest.starts_with(word));
                let (word, value) = word.ok_or_else(|| self.error("a value"))?;
                self.at += word.len();
                value
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Refused<Vec<(String, Json)>> {
        let (mut entries, mut keys) = (vec![], HashSet::new());
        self.skip(b'{');
        while !self.skip(b'}') {
            if !entries.is_empty() && !self.skip(b',') || self.peek() != Some(b'"') {
                return Err(self.error("a comma, a key or }"));
            }
            let key = self.string()?;
            if !keys.insert(key.clone()) {
                return Err(format!("JSON: the key {key:?} comes twice"));
            }
            if !self.skip(b':') {
                return Err(self.error("a colon"));
            }
            entries.push((key, self.value()?));
        }
        Ok(entries)
    }

    fn items(&mut self) -> Refused<Vec<Json>> {
        let mut items = vec![];
        self.skip(b'[');
        while !self.skip(b']') {
            if !items.is_empty() && !self.skip(b',') {
                return Err(self.error("a comma or ]"));
            }
            items.push(self.value()?);
        }
        Ok(items)
    }

    fn number(&mut self) -> Refused<String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len());
        let digits = rest[..end].trim_start_matches('-');
        let zeros = digits.len() > 1
            && digits.starts_with('0')
            && !digits[1..].starts_with(['.', 'e', 'E']);
        if !rest[..end].parse::<f64>().is_ok_and(f64::is_finite) || zeros {
            return Err(self.error("a number"));
        }
        self.at += end;
        Ok(rest[..end].to_string())
    }

    fn string(&mut self) -> Refused<String> {
        let mut units: Vec<u16> = vec![]; // UTF-16, as escapes write it
        let rest = &self.text[self.at + 1..];
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 2;
                    return String::from_utf16(&units).map_err(|_| self.error("whole characters"));
                }
                '\\' => {
                    let (at, escaped) = chars.next().ok_or_else(|| self.error("an escape"))?;
                    let plain = "\"\\/bfnrt".find(escaped).map(|i| b"\"\\/\x08\x0c\n\r\t"[i]);
                    if escaped == 'u' {
                        let code = rest.get(at + 1..at + 5).map(|hex| u16::from_str_radix(hex, 16));
                        units.push(
                            code.and_then(Result::ok).ok_or_else(|| self.error("four digits"))?,
                        );
                        chars.nth(3);
                    } else {
                        units.push(plain.ok_or_else(|| self.error("an escape"))?.into());
                    }
                }
                _ if c < ' ' => return Err(self.error("no control character")),
                _ => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            }
        }
        Err(self.error("a closing quote"))
    }
}

// ------------------------------------------------------------------------------ the log's bytes

/// What a step draws.
pub enum Method {
    Sampled { perturbations: u64 },
    Units { units: Vec<u64>, inputs: Vec<u64> },
}

/// What replay needs of a header.
pub struct Plan {
    pub method: Method,
    pub seed: u64,
    pub zeros: u64,
    pub shapes: Vec<Vec<u64>>,
    pub segments: Vec<[u64; 3]>, // seed, first, count
}

impl Plan {
    /// Read a header, and refuse a plan that no step can be drawn by.
    fn read(header: &Json) -> Refused<Plan> {
        let plan = header.at("plan")?;
        let wholes =
            |json: &Json| json.list()?.iter().map(Json::whole).collect::<Refused<Vec<_>>>();
        let shapes = plan.at("shapes")?.list()?.iter().map(wholes).collect::<Refused<Vec<_>>>()?;
        let names =
            plan.at("names")?.list()?.iter().map(Json::text).collect::<Refused<Vec<_>>>()?;
        let distinct = names.iter().collect::<HashSet<_>>().len() == names.len();
        if names.is_empty() || !distinct || names.len() != shapes.len() {
            return Err("names must be distinct, each with a shape".into());
        }
        let size = |shape: &Vec<u64>| shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b));
        let total = shapes.iter().map(size).try_fold(0u64, |a, b| a.checked_add(b?));
        if shapes.iter().flatten().any(|&side| side == 0) || !total.is_some_and(|n| n <= 1 << 28) {
            return Err("shapes must have sides of at least 1, and at most 2^28 weights".into());
        }
        let method = match plan.at("method")?.text()? {
            "sampled" => Method::Sampled {
                perturbations: within(
                    "perturbations",
                    plan.at("perturbations")?.whole()?,
                    1,
                    WORD - 1,
                )?,
            },
            "units" => {
                let (units, inputs) = (wholes(plan.at("units")?)?, wholes(plan.at("inputs")?)?);
                let fits = |layer: usize| match shapes[layer][..] {
                    [n_out, n_in] => {
                        units[layer] <= n_out
                            && n_out <= 1 << 20
                            && inputs[layer] <= n_in
                            && n_in <= 1 << 24
                    }
                    _ => false,
                };
                let lengths = units.len() == shapes.len() && inputs.len() == shapes.len();
                if !lengths || !(0..shapes.len()).all(fits) {
                    return Err("units and inputs must lie within the shapes".into());
                }
                Method::Units { units, inputs }
            }
            other => return Err(format!("method must be sampled or units, got {other}")),
        };
        let segment = |json: &Json| {
            wholes(json)?.try_into().map_err(|_| "segments have three numbers".to_string())
        };
        let segments = match header.get("segments") {
            Some(list) => list.list()?.iter().map(segment).collect::<Refused<_>>()?,
            None => vec![],
        };
        let zeros = within("zeros", plan.at("zeros")?.whole()?, 0, WORD)?;
        Ok(Plan { method, seed: plan.at("seed")?.whole()?, zeros, shapes, segments })
    }

    fn sizes(&self) -> Vec<u64> {
        self.shapes.iter().map(|shape| shape.iter().product()).collect()
    }

    /// All initial weights, layer after layer.
    pub fn initial_weights(&self) -> Refused<Vec<i8>> {
        let layers = self.sizes().into_iter().enumerate();
        let layers =
            layers.map(|(layer, size)| initial_codes(self.seed, size, self.zeros, layer as u32));
        Ok(layers.collect::<Refused<Vec<_>>>()?.concat())
    }

    /// The seed and the number that a step is drawn by.
    fn drawn_by(&self, number: u64) -> (u64, u64) {
        let mut left = number;
        for &[seed, first, count] in &self.segments {
            if left < count {
                return (seed, first + left);
            }
            left -= count;
        }
        (self.seed, number)
    }
}

/// Steps that were appended together.
pub struct Record<'a> {
    pub offset: usize,
    pub steps: u8,
    pub payload: &'a [u8],
    pub digest: &'a [u8],
}

/// All that is good in a file.
pub struct Log<'a> {
    pub header: Json,
    pub plan: Plan,
    pub records: Vec<Record<'a>>,
    pub torn_at: Option<usize>,
}

/// Little-endian number at a byte.
fn number_at(data: &[u8], at: usize, bytes: usize) -> u64 {
    data[at..at + bytes].iter().rev().fold(0, |x, &byte| x << 8 | u64::from(byte))
}

/// Whether a sector of 512 bytes that holds bytes start to stop is all zeros, from start on.
fn has_hole(data: &[u8], start: usize, stop: usize) -> bool {
    let mut sectors = (start / 512 * 512..stop).step_by(512);
    sectors.any(|at| data[start.max(at)..data.len().min(at + 512)].iter().all(|&byte| byte == 0))
}

/// Read a log; damage is an error that names the byte.
pub fn read_log(data: &[u8]) -> Refused<Log<'_>> {
    let magic = b"\x89MBL\r\n\x1a\n";
    let common = data.len().min(8);
    if data[..common] != magic[..common] {
        return Err("no log (byte 0)".into());
    }
    if data.len() < 14 {
        return Err(format!("the header is cut (byte {})", data.len()));
    }
    if number_at(data, 8, 2) != 1 {
        return Err("the version is not 1 (byte 8)".into());
    }
    let start = 14 + number_at(data, 10, 4) as usize;
    if start > 14 + (1 << 20) {
        return Err("the header is longer than 2^20 bytes (byte 10)".into());
    }
    if data.len() < start + 4 {
        return Err(format!("the header is cut (byte {})", data.len()));
    }
    let mut crc = crc32(&data[..start], 0);
    if u64::from(crc) != number_at(data, start, 4) {
        return Err("the header is damaged (byte 14)".into());
    }
    let text =
        std::str::from_utf8(&data[14..start]).map_err(|error| format!("{error} (byte 14)"))?;
    let header = Json::read(text).map_err(|error| format!("{error} (byte 14)"))?;
    let plan = Plan::read(&header).map_err(|error| format!("{error} (byte 14)"))?;
    let (mut records, mut at, mut torn_at) = (vec![], start + 4, None);
    while at < data.len() && torn_at.is_none() {
        if data.len() - at < 7 {
            torn_at = Some(at);
            break;
        }
        if u64::from(crc32(&data[at..at + 5], crc) & 0xFFFF) != number_at(data, at + 5, 2) {
            if !has_hole(data, at, at + 7) {
                return Err(format!("a record's head is damaged (byte {at})"));
            }
            torn_at = Some(at);
            break;
        }
        let stop = at + 7 + number_at(data, at + 1, 4) as usize + 8; // where its crc is
        if stop + 4 > data.len() {
            torn_at = Some(at);
            break;
        }
        let after = crc32(&data[at..stop], crc);
        if u64::from(after) != number_at(data, stop, 4) {
            let hole = data.len() - at <= 65_536 && has_hole(data, at, stop + 4);
            if stop + 4 != data.len() && !hole {
                return Err(format!("a record is damaged (byte {at})"));
            }
            torn_at = Some(at);
            break;
        }
        let steps = data[at];
        if !(1..=32).contains(&steps) {
            return Err(format!("a record of {steps} steps (byte {at})"));
        }
        records.push(Record {
            offset: at,
            steps,
            payload: &data[at + 7..stop - 8],
            digest: &data[stop - 8..stop],
        });
        (crc, at) = (after, stop + 4);
    }
    Ok(Log { header, plan, records, torn_at })
}

/// Codes off a payload, bits from the highest of a byte to the lowest.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Refused<u64> {
        let byte = self.bytes.get(self.at / 8).ok_or("the codes go past the payload's end")?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit.into())
    }

    fn number(&mut self, count: u32) -> Refused<u64> {
        (0..count).try_fold(0, |x, _| Ok(x << 1 | self.bit()?))
    }

    /// n zeros, then a number of n + 1 bits that begins with a one.
    fn gamma(&mut self) -> Refused<u64> {
        let mut n = 0;
        while self.bit()? == 0 {
            n += 1;
        }
        within("the bits of a number", n.into(), 0, 62)?;
        Ok(1 << n | self.number(n)?)
    }

    /// A number below `size`; the smallest take a bit less.
    fn uniform(&mut self, size: u64) -> Refused<u64> {
        if size == 1 {
            return Ok(0);
        }
        let bits = u64::BITS - (size - 1).leading_zeros();
        let (short, x) = ((1 << bits) - size, self.number(bits - 1)?);
        if x < short {
            Ok(x)
        } else {
            Ok((x << 1 | self.bit()?) - short)
        }
    }

    /// Increasing positions below `size`, gap by gap.
    fn subset(&mut self, count: u64, size: u64) -> Refused<Vec<u64>> {
        let (mut positions, mut start) = (vec![], 0);
        for k in (1..=count).rev() {
            let room = size - start - k + 1;
            let m = if k == 1 { room } else { ((7 * room + 5 * k) / (10 * k)).max(1) };
            let mut q = 0;
            while q < (room - 1) / m && self.bit()? == 0 {
                q += 1;
            }
            let position = start + q * m + self.uniform(m.min(room - q * m))?;
            positions.push(position);
            start = position + 1;
        }
        Ok(positions)
    }

    fn sign(&mut self) -> Refused<i32> {
        Ok(1 - 2 * self.bit()? as i32)
    }

    /// Refuse a payload that goes on: fewer than eight bits are left, all zero.
    fn close(mut self) -> Refused<()> {
        let left = 8 * self.bytes.len() - self.at;
        if left > 7 || self.number(left as u32)? != 0 {
            return Err("bits follow the last code".into());
        }
        Ok(())
    }
}

/// What a step says: codes of its perturbations, or positions and signs of each layer.
enum Step {
    Sampled { numerator: u64, codes: Vec<i32> },
    Units(Vec<(Vec<u64>, Vec<i32>)>),
}

/// The steps of a record.
fn steps_of(plan: &Plan, payload: &[u8], count: u8) -> Refused<Vec<Step>> {
    let mut steps = vec![];
    match &plan.method {
        Method::Sampled { perturbations } => {
            if payload.len() < 4 {
                return Err("a payload without a numerator".into());
            }
            let numerator = number_at(payload, 0, 4);
            let mut bits = Bits { bytes: &payload[4..], at: 0 };
            for _ in 0..count {
                let mut code = |_| if bits.bit()? == 1 { bits.sign() } else { Ok(0) };
                let codes = (0..*perturbations).map(&mut code).collect::<Refused<_>>()?;
                steps.push(Step::Sampled { numerator, codes });
            }
            bits.close()?;
        }
        Method::Units { units, inputs } => {
            let mut bits = Bits { bytes: payload, at: 0 };
            let ranges = units.iter().map(|_| Ok((bits.gamma()? - 1, bits.gamma()?)));
            let ranges = ranges.collect::<Refused<Vec<_>>>()?;
            for _ in 0..count {
                let mut layers = vec![];
                for (layer, &(least, span)) in ranges.iter().enumerate() {
                    let size = units[layer] * inputs[layer];
                    let moves = within("moves", least + bits.uniform(span)?, 0, size)?;
                    let positions = bits.subset(moves, size)?;
                    let signs = (0..moves).map(|_| bits.sign()).collect::<Refused<_>>()?;
                    layers.push((positions, signs));
                }
                steps.push(Step::Units(layers));
            }
            bits.close()?;
        }
    }
    Ok(steps)
}

/// What a step adds to each weight that it moves, drawn by a seed and a number.
fn moves_of(plan: &Plan, seed: u64, number: u64, step: &Step) -> Refused<BTreeMap<u64, i32>> {
    let (mut moves, number) = (BTreeMap::new(), within("step", number, 0, WORD - 1)? as u32);
    let sizes = plan.sizes();
    match step {
        Step::Sampled { numerator, codes } => {
            let constants = noise_constants(*numerator)?;
            for (i, &code) in codes.iter().enumerate().filter(|(_, &code)| code != 0) {
                let size = sizes.iter().sum();
                let (positions, signs) =
                    sparse_noise(seed, number, i as u32, size, &constants, None)?;
                for (position, sign) in positions.into_iter().zip(signs) {
                    *moves.entry(position).or_insert(0) -= code * i32::from(sign);
                }
            }
        }
        Step::Units(layers) => {
            let Method::Units { units, inputs } = &plan.method else { unreachable!() };
            let mut start = 0;
            for (layer, (positions, signs)) in layers.iter().enumerate() {
                let (n_out, n_in) = (plan.shapes[layer][0], plan.shapes[layer][1]);
                let drawn = draw_units(seed, number, layer as u32, n_out, units[layer])?;
                let mut columns = BTreeMap::new();
                for (&candidate, &sign) in positions.iter().zip(signs) {
                    let unit = drawn[(candidate / inputs[layer]) as usize];
                    if !columns.contains_key(&unit) {
                        columns.insert(
                            unit,
                            draw_inputs(seed, number, layer as u64, unit, n_in, inputs[layer])?,
                        );
                    }
                    let input = columns[&unit][(candidate % inputs[layer]) as usize];
                    *moves.entry(start + unit * n_in + input).or_insert(0) += sign;
                }
                start += sizes[layer];
            }
        }
    }
    Ok(moves)
}

/// Replay a log, all digests checked: `visit` sees the weights before the first step and after each.
pub fn replay(log: &Log, mut visit: impl FnMut(&[i8])) -> Refused<Vec<i8>> {
    let mut weights = log.plan.initial_weights()?;
    visit(&weights);
    let mut number = 0;
    for record in &log.records {
        let told = |error| format!("a record cannot be read: {error} (byte {})", record.offset);
        for step in steps_of(&log.plan, record.payload, record.steps).map_err(told)? {
            let (seed, drawn_as) = log.plan.drawn_by(number);
            for (position, sum) in moves_of(&log.plan, seed, drawn_as, &step)? {
                let weight = &mut weights[position as usize];
                *weight = (i32::from(*weight) + sum).clamp(-1, 1) as i8; // once, when all are summed
            }
            number += 1;
            visit(&weights);
        }
        if digest(&weights)[..8] != *record.digest {
            return Err(format!(
                "the weights after a record have another digest (byte {})",
                record.offset
            ));
        }
    }
    Ok(weights)
}
