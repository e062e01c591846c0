//! The Rust port behind `minibit conform --port ./port`, once it is built:
//!
//! ```sh
//! rustc -O --edition 2021 docs/ports/rust/adapter.rs -o port
//! ```
//!
//! One JSON line per case comes in, one goes out. Arrays travel as bit patterns:
//! `{"dtype": "float32", "shape": [2], "bits": "3f800000 80000000"}`; a number has shape [].

mod minibit;

use minibit::{Json, Refused};
use std::io::Write;

/// Why there is no answer.
enum No {
    Offered,
    Refused(String),
}

impl From<String> for No {
    fn from(why: String) -> No {
        No::Refused(why)
    }
}

/// An array: words of bits, and how to read them.
struct Array {
    dtype: String,
    shape: Vec<usize>,
    words: Vec<u64>,
}

impl Array {
    fn decode(json: &Json) -> Refused<Array> {
        let side = |side: &Json| Ok(side.whole()? as usize);
        let word = |word| u64::from_str_radix(word, 16).map_err(|_| format!("{word} is no word"));
        Ok(Array {
            dtype: json.at("dtype")?.text()?.to_string(),
            shape: json.at("shape")?.list()?.iter().map(side).collect::<Refused<_>>()?,
            words: json
                .at("bits")?
                .text()?
                .split(' ')
                .filter(|w| !w.is_empty())
                .map(word)
                .collect::<Refused<_>>()?,
        })
    }

    fn float(&self, word: u64) -> f64 {
        match self.dtype.as_str() {
            "float64" => f64::from_bits(word),
            "float32" => f32::from_bits(word as u32).into(),
            "int8" => f64::from(word as i8),
            "uint8" => f64::from(word as u8),
            _ => word as i64 as f64,
        }
    }

    fn floats(&self) -> Vec<f64> {
        self.words.iter().map(|&word| self.float(word)).collect()
    }

    fn singles(&self) -> Vec<f32> {
        self.floats().into_iter().map(|x| x as f32).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.words.iter().map(|&word| word as u8).collect()
    }

    fn codes(&self) -> Vec<i8> {
        self.words.iter().map(|&word| word as i8).collect()
    }

    fn single(&self) -> bool {
        self.dtype != "float64"
    }

    fn width(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }

    /// Its shape with another last side.
    fn outer(&self, width: usize) -> Vec<usize> {
        let rows = self.shape.len().saturating_sub(1);
        [&self.shape[..rows], &[width]].concat()
    }

    /// An array of two axes.
    fn matrix(&self) -> Refused<[usize; 2]> {
        self.shape
            .as_slice()
            .try_into()
            .map_err(|_| format!("shape {:?} has not two axes", self.shape))
    }
}

/// The arguments of a case.
struct Args<'a>(&'a Json);

impl Args<'_> {
    /// Whether an argument is there and not null.
    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|json| *json != Json::Null)
    }

    fn array(&self, name: &str) -> Refused<Array> {
        Array::decode(self.0.at(name)?)
    }

    /// A whole number, 0 where it is left out.
    fn whole(&self, name: &str) -> Refused<u64> {
        let Some(json) = self.0.get(name) else { return Ok(0) };
        let array = Array::decode(json)?;
        match array.words[..] {
            [word] if array.dtype == "uint64" || (word as i64) >= 0 => Ok(word),
            _ => Err(format!("{name} must be one whole number, 0 or more")),
        }
    }

    fn size(&self, name: &str) -> Refused<usize> {
        Ok(self.whole(name)? as usize)
    }

    /// A counter of 32 bits.
    fn counter(&self, name: &str) -> Refused<u32> {
        u32::try_from(self.whole(name)?).map_err(|_| format!("{name} must be below 2^32"))
    }

    fn number(&self, name: &str, default: f64) -> Refused<f64> {
        let Some(json) = self.0.get(name) else { return Ok(default) };
        let array = Array::decode(json)?;
        Ok(array.float(array.words[0]))
    }

    fn text(&self, name: &str, default: &'static str) -> Refused<&str> {
        self.0.get(name).map_or(Ok(default), Json::text)
    }

    /// The sides of a shape: one number, an array, or a list of numbers.
    fn sides(&self, name: &str) -> Refused<Vec<usize>> {
        let side = |json: &Json| Ok(Array::decode(json)?.words.into_iter().map(|n| n as usize));
        match self.0.at(name)? {
            Json::List(items) => Ok(items
                .iter()
                .map(side)
                .collect::<Refused<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect()),
            json => Ok(side(json)?.collect()),
        }
    }

    /// A share's numerator: an integer is it, a float is the share.
    fn numerator(&self, name: &str) -> Refused<u64> {
        let array = self.array(name)?;
        if array.dtype.starts_with("float") {
            minibit::numerator_of(name, array.float(array.words[0]))
        } else {
            self.whole(name)
        }
    }

    fn stream(&self) -> Refused<minibit::Stream> {
        let domain = if self.has("domain") { self.counter("domain")? } else { 255 };
        let (step, lane) = (self.counter("step")?, self.counter("lane")?);
        Ok(minibit::Stream { seed: self.whole("seed")?, domain, step, lane })
    }

    /// The codes of a TernaryMatrix, its shape, and its scale.
    fn matrix(&self) -> Result<(Vec<i8>, [usize; 2], f32), No> {
        let args = Args(self.0.at("matrix")?.at("args")?);
        let scale = if args.has("scale") {
            args.array("scale")?
        } else {
            array("float64", vec![], vec![1f64.to_bits()])
        };
        if !scale.shape.is_empty() {
            return Err(No::Offered); // one scale per matrix, no groups
        }
        let codes = args.array("codes")?;
        Ok((codes.codes(), codes.matrix()?, scale.float(scale.words[0]) as f32))
    }
}

/// An array to write.
fn array(dtype: &str, shape: Vec<usize>, words: Vec<u64>) -> Array {
    Array { dtype: dtype.into(), shape, words }
}

fn flat(words: &[u64], dtype: &str) -> Array {
    array(dtype, vec![words.len()], words.to_vec())
}

fn int8(shape: Vec<usize>, codes: &[i8]) -> Array {
    array("int8", shape, codes.iter().map(|&code| u64::from(code as u8)).collect())
}

fn uint8(shape: Vec<usize>, bytes: &[u8]) -> Array {
    array("uint8", shape, bytes.iter().map(|&byte| byte.into()).collect())
}

fn float32(shape: Vec<usize>, floats: &[f32]) -> Array {
    array("float32", shape, floats.iter().map(|x| x.to_bits().into()).collect())
}

/// Floats of the precision of x.
fn like(x: &Array, shape: Vec<usize>, floats: &[f64]) -> Array {
    let bits = |v: &f64| if x.single() { (*v as f32).to_bits().into() } else { v.to_bits() };
    array(if x.single() { "float32" } else { "float64" }, shape, floats.iter().map(bits).collect())
}

/// `words`, `uniform` and others of some shape.
fn shaped(
    args: &Args,
    dtype: &str,
    draw: impl Fn(u64) -> Refused<Vec<u64>>,
) -> Refused<Vec<Array>> {
    let sides = args.sides("shape")?;
    let words = draw(sides.iter().product::<usize>() as u64)?;
    Ok(vec![array(dtype, sides, words)])
}

fn blocks_out((codes, scales): (Vec<i8>, Vec<f32>), rows: usize) -> Vec<Array> {
    let (n_in, blocks) = (codes.len() / rows, scales.len() / rows);
    vec![int8(vec![rows, n_in], &codes), float32(vec![rows, blocks], &scales)]
}

fn blocks_in(
    args: &Args,
    pack: fn(&[i8], usize, &[f64]) -> Refused<Vec<u8>>,
) -> Result<Vec<Array>, No> {
    let codes = args.array("codes")?;
    let [n_out, n_in] = codes.matrix()?;
    let scale = if args.has("scale") {
        args.array("scale")?
    } else {
        array("float64", vec![], vec![1f64.to_bits()])
    };
    if !scale.shape.is_empty() && scale.shape != [n_out, n_in / 256] {
        return Err(No::Offered); // one scale, or one a block
    }
    let packed = pack(&codes.codes(), n_in, &scale.floats())?;
    Ok(vec![uint8(vec![n_out, packed.len() / n_out], &packed)])
}

fn mask_out(x: &Array, mask: Vec<bool>) -> Vec<Array> {
    vec![array("bool", x.shape.clone(), mask.into_iter().map(u64::from).collect())]
}

fn mlp(args: &Args) -> Result<Vec<Array>, No> {
    let Json::Object(params) = args.0.at("params")? else { return Err(No::Offered) };
    let mut params: Vec<_> = params.iter().collect();
    params.sort_by_key(|entry| &entry.0);
    let weights =
        params.iter().map(|(_, json)| Array::decode(json)).collect::<Refused<Vec<_>>>()?;
    if params.iter().enumerate().any(|(i, (name, _))| *name != format!("w{}", i + 1)) {
        return Err(No::Refused("params must be named w1, w2, ... without gaps".into()));
    }
    let codes: Vec<_> = weights.iter().map(Array::codes).collect();
    let layer = |(w, codes): (&Array, _)| -> Refused<_> {
        let [n_out, n_in] = Array::matrix(w)?;
        Ok(minibit::Layer { codes, n_out, n_in })
    };
    let layers = weights
        .iter()
        .zip(codes.iter().map(Vec::as_slice))
        .map(layer)
        .collect::<Refused<Vec<_>>>()?;
    let x = args.array("x")?;
    let options = minibit::MlpOptions {
        logit_scale: args.number("logit_scale", 1.0)?,
        eps: args.number("eps", 1e-5)?,
        activations: args.text("activations", "float")?,
        single: x.single(),
    };
    let logits = minibit::mlp(&layers, &x.floats(), &options)?;
    Ok(vec![like(&x, x.outer(layers[layers.len() - 1].n_out), &logits)])
}

fn step_log(args: &Args) -> Result<Vec<Array>, No> {
    let data = args.array("file")?.bytes();
    let log = minibit::read_log(&data)?;
    let mut history = vec![];
    let weights = minibit::replay(&log, |weights| history.extend_from_slice(weights))?;
    let torn = log.torn_at.map_or(u64::MAX, |at| at as u64);
    let shape = vec![history.len() / weights.len(), weights.len()];
    Ok(vec![int8(shape, &history), array("int64", vec![], vec![torn])])
}

/// What a call means.
fn answer(call: &str, args: &Args) -> Result<Vec<Array>, No> {
    Ok(match call {
        "philox4x32" => {
            let (counter, key) = (args.array("counter")?, args.array("key")?);
            let words: Vec<u32> = counter.words.iter().map(|&word| word as u32).collect();
            let block = |(i, c): (usize, &[u32])| {
                let k = if key.words.len() == 2 { 0 } else { 2 * i };
                minibit::philox4x32(
                    [c[0], c[1], c[2], c[3]],
                    [key.words[k] as u32, key.words[k + 1] as u32],
                )
            };
            let out = words.chunks(4).enumerate().flat_map(block).map(u64::from).collect();
            vec![array("uint32", counter.shape, out)]
        }
        "words" => {
            let words = args.stream()?.words(args.whole("start")?, args.whole("count")?)?;
            vec![flat(&words.into_iter().map(u64::from).collect::<Vec<_>>(), "uint32")]
        }
        "uniform" => shaped(args, "float64", |n| {
            Ok(args.stream()?.uniform(n)?.into_iter().map(f64::to_bits).collect())
        })?,
        "integers" => shaped(args, "int64", |n| args.stream()?.integers(args.whole("high")?, n))?,
        "initial_codes" => shaped(args, "int8", |n| {
            let codes = minibit::initial_codes(
                args.whole("seed")?,
                n,
                args.numerator("zeros")?,
                args.counter("layer")?,
            )?;
            Ok(codes.into_iter().map(|code| u64::from(code as u8)).collect())
        })?,
        "noise_constants" => {
            let found = minibit::noise_constants(args.numerator("density")?)?;
            let number = |n| array("int64", vec![], vec![n]);
            vec![number(found.numerator), number(found.bits.into()), flat(&found.table, "uint64")]
        }
        "sparse_noise" => {
            let blocks = if args.has("blocks") { Some(args.sides("blocks")?) } else { None };
            let blocks =
                blocks.map(|sides| sides.into_iter().map(|block| block as u64).collect::<Vec<_>>());
            let constants = minibit::noise_constants(args.numerator("density")?)?;
            let (seed, step, perturbation) =
                (args.whole("seed")?, args.counter("step")?, args.counter("perturbation")?);
            let (positions, signs) = minibit::sparse_noise(
                seed,
                step,
                perturbation,
                args.whole("size")?,
                &constants,
                blocks.as_deref(),
            )?;
            vec![flat(&positions, "int64"), int8(vec![signs.len()], &signs)]
        }
        "draw_units" => {
            let (seed, step, layer) =
                (args.whole("seed")?, args.counter("step")?, args.counter("layer")?);
            vec![flat(
                &minibit::draw_units(
                    seed,
                    step,
                    layer,
                    args.whole("n_out")?,
                    args.whole("count")?,
                )?,
                "int64",
            )]
        }
        "draw_inputs" => {
            let (seed, step, layer) =
                (args.whole("seed")?, args.counter("step")?, args.whole("layer")?);
            let (unit, n_in, count) =
                (args.whole("unit")?, args.whole("n_in")?, args.whole("count")?);
            vec![flat(&minibit::draw_inputs(seed, step, layer, unit, n_in, count)?, "int64")]
        }
        "pack2" | "pack_base3" | "pack_bitplanes" => {
            let codes = args.array("codes")?.codes();
            let planes = vec![2, codes.len().div_ceil(8)];
            let packed = match call {
                "pack2" => minibit::pack2(&codes)?,
                "pack_base3" => minibit::pack_base3(&codes)?,
                _ => minibit::pack_bitplanes(&codes)?,
            };
            vec![uint8(if call == "pack_bitplanes" { planes } else { vec![packed.len()] }, &packed)]
        }
        "unpack2" | "unpack_base3" | "unpack_bitplanes" => {
            let (packed, count) = (args.array("packed")?.bytes(), args.size("count")?);
            let codes = match call {
                "unpack2" => minibit::unpack2(&packed, count)?,
                "unpack_base3" => minibit::unpack_base3(&packed, count)?,
                _ => minibit::unpack_bitplanes(&packed, count)?,
            };
            vec![int8(vec![codes.len()], &codes)]
        }
        "to_hf" => {
            let codes = args.array("codes")?;
            let [n_out, n_in] = codes.matrix()?;
            vec![uint8(
                vec![n_out.div_ceil(4), n_in],
                &minibit::to_hf(&codes.codes(), n_out, n_in)?,
            )]
        }
        "from_hf" => {
            let (packed, n_out) = (args.array("packed")?, args.size("n_out")?);
            let n_in = packed.width();
            vec![int8(vec![n_out, n_in], &minibit::from_hf(&packed.bytes(), n_out, n_in)?)]
        }
        "to_tq1_0" => blocks_in(args, minibit::to_tq1_0)?,
        "to_tq2_0" => blocks_in(args, minibit::to_tq2_0)?,
        "from_tq1_0" | "from_tq2_0" => {
            let packed = args.array("packed")?;
            let read = if call == "from_tq1_0" { minibit::from_tq1_0 } else { minibit::from_tq2_0 };
            blocks_out(read(&packed.bytes())?, packed.shape[0])
        }
        "to_i2_s" => {
            let codes = args.array("codes")?;
            let [n_out, n_in] = codes.matrix()?;
            let (scale, layout) = (args.number("scale", 1.0)?, args.text("layout", "x86")?);
            let packed = minibit::to_i2_s(&codes.codes(), n_out, n_in, scale, layout)?;
            vec![uint8(vec![packed.len()], &packed)]
        }
        "from_i2_s" => {
            let (packed, shape) = (args.array("packed")?.bytes(), args.sides("shape")?);
            let (codes, scale) =
                minibit::from_i2_s(&packed, shape[0], shape[1], args.text("layout", "x86")?)?;
            vec![int8(shape, &codes), float32(vec![], &[scale])]
        }
        "absmean_quantize" | "binary_quantize" => {
            let w = args.array("w")?;
            let quantize = if call == "absmean_quantize" {
                minibit::absmean_quantize
            } else {
                minibit::binary_quantize
            };
            let (codes, scale) = quantize(&w.singles())?;
            vec![int8(w.shape, &codes), float32(vec![], &[scale])]
        }
        "absmax_quantize" => {
            let x = args.array("x")?;
            let (codes, scale) = minibit::absmax_quantize(&x.singles(), x.width())?;
            vec![int8(x.shape.clone(), &codes), float32(x.outer(1), &scale)]
        }
        "quantize_nf4" => {
            if args.0.get("double_quant") == Some(&Json::Bool(true))
                || args.has("double_quant") && args.whole("double_quant")? == 1
            {
                return Err(No::Offered);
            }
            let (w, block) =
                (args.array("w")?, if args.has("block") { args.size("block")? } else { 64 });
            let (packed, absmax) = minibit::quantize_nf4(&w.singles(), block)?;
            let values = minibit::dequantize_nf4(&packed, &absmax, w.words.len(), block);
            vec![
                uint8(vec![packed.len()], &packed),
                float32(vec![absmax.len()], &absmax),
                float32(w.shape, &values),
            ]
        }
        "topk_mask" => {
            let x = args.array("x")?;
            let mask = minibit::topk_mask(&x.floats(), x.width(), args.size("k")?)?;
            mask_out(&x, mask)
        }
        "block_topk_mask" => {
            let x = args.array("x")?;
            let mask =
                minibit::block_topk_mask(&x.floats(), x.width(), args.size("n")?, args.size("m")?)?;
            mask_out(&x, mask)
        }
        "ternary_matmul_int8" => {
            let (x, (codes, [n_out, n_in], _)) = (args.array("x")?, args.matrix()?);
            let sums = minibit::ternary_matmul_int8(&x.codes(), &codes, n_in)?;
            vec![array(
                "int32",
                x.outer(n_out),
                sums.iter().map(|&z| u64::from(z as u32)).collect(),
            )]
        }
        "ternary_matmul" => {
            let (x, (codes, [n_out, n_in], gamma)) = (args.array("x")?, args.matrix()?);
            vec![float32(
                x.outer(n_out),
                &minibit::ternary_matmul(&x.singles(), &codes, n_in, gamma)?,
            )]
        }
        "layer_norm" => {
            let x = args.array("x")?;
            let z = minibit::layer_norm(&x.floats(), x.width(), args.number("eps", 1e-5)?)?;
            vec![like(&x, x.shape.clone(), &z)]
        }
        "mlp" => mlp(args)?,
        "keep_terns" => {
            let (alignments, squares) =
                (args.array("alignments")?.floats(), args.array("squares")?.floats());
            let codes =
                minibit::keep_terns(&alignments, &squares, args.text("score", "absolute")?)?;
            vec![int8(vec![codes.len()], &codes)]
        }
        "keep_moves" => {
            let (alignments, squares) =
                (args.array("alignments")?.floats(), args.array("squares")?.floats());
            let weights = args.array("weights")?.codes();
            let (positions, directions) =
                minibit::keep_moves(&alignments, &squares, &weights, args.size("count")?);
            vec![flat(&positions, "int64"), int8(vec![directions.len()], &directions)]
        }
        "StepLog" => step_log(args)?,
        _ => return Err(No::Offered),
    })
}

/// An array as JSON.
fn encode(array: &Array) -> String {
    let digits = match array.dtype.as_str() {
        "bool" | "int8" | "uint8" => 2,
        "int32" | "uint32" | "float32" => 8,
        _ => 16,
    };
    let bits: Vec<String> = array.words.iter().map(|word| format!("{word:0digits$x}")).collect();
    format!(
        "{{\"dtype\": \"{}\", \"shape\": {:?}, \"bits\": \"{}\"}}",
        array.dtype,
        array.shape,
        bits.join(" ")
    )
}

/// Text in quotes.
fn quoted(text: &str) -> String {
    let escape = |c| match c {
        '"' | '\\' => format!("\\{c}"),
        '\0'..='\x1f' => format!("\\u{:04x}", c as u32),
        _ => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// The answer to one line.
fn reply(line: &str) -> Refused<String> {
    let case = Json::read(line)?;
    let (id, call) = (quoted(case.at("id")?.text()?), case.at("call")?.text()?);
    Ok(match answer(call, &Args(case.at("args")?)) {
        Ok(out) => format!(
            "{{\"id\": {id}, \"out\": [{}]}}",
            out.iter().map(encode).collect::<Vec<_>>().join(", ")
        ),
        Err(No::Offered) => format!("{{\"id\": {id}, \"skip\": true}}"),
        Err(No::Refused(why)) => format!("{{\"id\": {id}, \"refused\": {}}}", quoted(&why)),
    })
}

pub fn main() {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match reply(&line) {
            Ok(text) => println!("{text}"),
            Err(why) => eprintln!("{why}"),
        }
        std::io::stdout().flush().expect("standard output");
    }
}
