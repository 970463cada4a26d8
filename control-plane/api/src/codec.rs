//! How messages become bytes: protobuf, in buffers as large as these messages are.
//!
//! tonic gives each call two buffers of 8 KiB and keeps them for as long as it lasts. Thousands of streams that
//! last for days and say something now and then need less: each begins with [`BUFFER_BYTES`] and grows.

use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a call has at first for each direction: less than most messages take, so that the buffer is as large as they are.
const BUFFER_BYTES: usize = 128;
/// Messages that are ready together are sent together, up to this many bytes; tonic's own default.
const TOGETHER_BYTES: usize = 32 * 1024;

/// The codec of every service of the API.
#[derive(Debug)]
pub struct ApiCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ApiCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ApiCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, TOGETHER_BYTES)
}
