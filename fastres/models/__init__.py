"""Models: `resnet` is the ImageNet family; `timm_blocks` the counterparts of timm's, which `fastres.optimize` uses."""
