"""A tuned checkpoint beside its base: alone, searched, and beyond itself."""

import steer


pipe = steer.shapes.pipeline()
tuned = steer.shapes.weights_folder() / "tuned" / "poly-dpo"  # a LoRA; a hub id does as well
for blend in (None, steer.RLG(1.5)):
    guided = steer.guided(pipe, reward="shapes", tuned=tuned, blend=blend)
    out = guided("a green square above a red circle", compute=2, num_inference_steps=20)
    print(blend, out.rewards)
out.images[0].save("tuned.png")
